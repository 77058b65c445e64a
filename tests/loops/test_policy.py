"""The policy: what its finetuning is asked for, what is merged, and where its weights can be found again.

Run: pytest tests/loops/test_policy.py
"""

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from fixtures_seal import MemoryRun, digest, random_adapter, seedling

from seal_lib import models
from seal_lib.errors import DataError
from seal_lib.loops.policy import Policy, Source, pieces, recipe
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.seeds import derive_seed
from seal_lib.training import finetune, several
from seal_lib.training.adapters import Adapter, merge

BASE = Source("seedling-knowledge")
HOW = {"lr": 0.5, "epochs": 3, "rank": 2, "alpha": 4.0, "targets": "qv", "schedule": "cosine", "warmup_ratio": 0.2}
HOW |= {"weight_decay": 0.1, "clip": 0.9}
OUTER = OuterLoop(sft_batch=7, **{f"sft_{name}": value for name, value in HOW.items()})
PAIRS = [([5, 6], [7, 8])]


def adapter(seed: int = 0) -> Adapter:
    return random_adapter(seedling()[0], "qv", 2, seed)


def policy(source: Source | None = BASE, name: str = "base") -> Policy:
    return Policy(name, *seedling(), source=source)


@pytest.fixture
def asked(monkeypatch):
    """The calls of `sft` and of its form for several cards, each answered with an adapter or a model."""
    calls, answer = [], SimpleNamespace(given=adapter(), loss=0.25)

    def sft(model, pairs, **settings):
        calls.append(("one", model, pairs, settings))
        return answer.given, {"last_loss": answer.loss, "steps": 2}

    def sft_over(cards, model, source, pairs, **settings):
        calls.append((cards, model, pairs, settings | {"source": source}))
        return answer.given, {"last_loss": answer.loss}

    monkeypatch.setattr(finetune, "sft", sft)
    monkeypatch.setattr(several, "sft_over", sft_over)
    return calls, answer


def test_a_finetuning_gets_its_settings_and_its_adapter_is_merged_into_a_copy(asked, tmp_path) -> None:
    calls, answer = asked
    base, before = policy(), digest(seedling()[0])
    after, loss = base.finetuned(MemoryRun(tmp_path), PAIRS, OUTER, name="r/one", seed=5)
    ((kind, model, pairs, settings),) = calls
    assert (kind, model, pairs) == ("one", base.model, PAIRS)
    assert settings == HOW | {"batch": 7, "accumulate": 1, "seed": derive_seed(5, "r/one", "sft")}
    assert loss == 0.25 and after.name == "r/one" and digest(seedling()[0]) == before
    assert digest(after.model) == digest(merge(base.model, answer.given, copy=True)) != before
    folder = tmp_path / "policies" / "r/one"
    assert json.loads((folder / "report.json").read_text()) == {"last_loss": 0.25, "steps": 2, "stands_on": []}
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.model.config._name_or_path != ""
    assert after.source == Source("seedling-knowledge", adapters=(str((folder / "adapter").resolve()),))
    model, _ = after.source.load()  # another process finds the same weights
    assert digest(model) == digest(after.model)

    again, _ = base.finetuned(MemoryRun(tmp_path), PAIRS, OUTER, name="r/one", seed=5)  # kept: not trained again
    assert len(calls) == 1 and digest(again.model) == digest(after.model)
    third, _ = after.finetuned(MemoryRun(tmp_path), PAIRS, OUTER, name="r/two", seed=5)
    report = json.loads((tmp_path / "policies" / "r/two" / "report.json").read_text())
    assert report["stands_on"] == list(after.source.adapters) and len(third.source.adapters) == 2
    assert third.source.follows(after.source) and third.source.follows(BASE) and BASE.follows(BASE)
    assert not BASE.follows(after.source) and not third.source.follows(Source("other"))


def test_a_loss_that_is_no_number_and_a_model_without_a_name(asked, tmp_path, monkeypatch) -> None:
    calls, answer = asked
    answer.loss = None
    nameless = policy(source=None, name="mine")
    monkeypatch.setattr(nameless.model.config, "_name_or_path", "")
    after, loss = nameless.finetuned(MemoryRun(tmp_path), PAIRS, OUTER, name="r", seed=5)
    assert math.isnan(loss) and after.source is None
    config = json.loads((tmp_path / "policies" / "r" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "mine"


@pytest.mark.parametrize("cards", [1, 2, 3])
def test_several_cards_get_the_source_of_the_weights(asked, tmp_path, cards: int) -> None:
    calls, _ = asked
    policy().finetuned(MemoryRun(tmp_path), PAIRS, OuterLoop(cards=cards), name="r", seed=5)
    ((kind, _, _, settings),) = calls
    assert kind == ("one" if cards == 1 else cards) and settings.get("source") == (None if cards == 1 else asdict(BASE))
    if cards > 1:
        with pytest.raises(DataError, match="policy 'x' does not say which model it is"):
            policy(None, "x").finetuned(MemoryRun(tmp_path), PAIRS, OuterLoop(cards=cards), name="s", seed=5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_continued_pretraining_trains_on_all_tokens_of_documents(asked, method: str) -> None:
    calls, answer = asked
    base, before, steps = policy(), digest(seedling()[0]), []
    if method == "full":
        answer.given = merge(base.model, adapter(3), copy=True)
    settings = Pretraining(cpt_method=method, cpt_batch=7, **{f"cpt_{name}": value for name, value in HOW.items()})
    after, report = base.pretrained([[5, 6], [7]], settings, seed=9, on_step=steps.append)
    ((kind, _, pairs, given),) = calls
    assert (kind, pairs) == ("one", [((), [5, 6]), ((), [7])]) and report["last_loss"] == 0.25
    more = {"method": method, "loss_on": "all", "seed": 9, "on_step": steps.append, "gradient_checkpointing": False}
    assert given == HOW | {"batch": 7, "accumulate": 1} | more
    assert after.source is None and after.name == "base" and digest(base.model) == before != digest(after.model)
    assert method == "full" or digest(after.model) == digest(merge(base.model, answer.given, copy=True))
    base.pretrained([[5, 6]], settings, seed=9)
    assert "on_step" not in calls[-1][3]
    base.pretrained([[5, 6]], Pretraining(cards=2), seed=9, on_step=steps.append)
    assert calls[-1][0] == 2 and "on_step" not in calls[-1][3]


def test_a_batch_is_one_forward_pass_on_a_cpu_and_one_pair_each_on_a_card() -> None:
    assert pieces(seedling()[0], 10) == (10, 1)
    elsewhere = SimpleNamespace(parameters=lambda: iter([torch.zeros(1, device="meta")]))
    assert pieces(elsewhere, 10) == (1, 10)
    assert recipe(OuterLoop(), "sft_")["rank"] == 64 and recipe(Pretraining(), "cpt_")["rank"] == 32


def test_the_engine_is_chosen_at_once() -> None:
    assert Policy("p", *seedling(), engine="auto").engine == "hf"  # without a card
    with pytest.raises(DataError, match="engine: 'steam'"):
        Policy("p", *seedling(), engine="steam")


def test_where_the_weights_are(tmp_path, monkeypatch) -> None:
    """A shipped folder, a Hub id with its commit, or a copy where adapters of rounds are merged in."""
    monkeypatch.setitem(models.REVISIONS, "owner/pinned", "c0ffee")
    folder, revision = policy().place(None)
    assert folder == str(models.SEEDLINGS / "knowledge") and revision is None
    assert policy(Source("owner/pinned")).place(None) == ("owner/pinned", "c0ffee")
    assert policy(Source("owner/pinned", revision="abc")).place(None) == ("owner/pinned", "abc")
    assert policy(Source("owner/other")).place(None) == ("owner/other", None)
    with pytest.raises(DataError, match="does not say which model"):
        policy(None).place(None)
    adapter().save(tmp_path / "adapter", "seedling-knowledge")
    learned = policy(BASE.then(tmp_path / "adapter"), "later")
    place, revision = learned.place(MemoryRun(tmp_path))
    assert place == str((tmp_path / "models" / "later").resolve()) and revision is None
    assert digest(models.load(place)[0]) == digest(learned.model)
