"""Records: JSON there and back, numbers that must stay missing, and a face in Jupyter that runs nothing."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

from conftest import REPOSITORY
from fixtures_seal import made, seedling, trial

from seal_lib import seeds
from seal_lib.records import Answer, Passage, PassageTrial, Round, SelfEdit, by_passage, to_dict
from seal_lib.report import show

EVIL = "<script>alert(1)</script>\n& more"
EDIT = SelfEdit("p/0", "p", EVIL, "policy", 2**62 + 1, 7)


def test_json_there_and_back_keeps_everything() -> None:
    passage = made(1)[0]
    assert Passage.from_dict(json.loads(json.dumps(to_dict(passage)))) == passage
    assert SelfEdit.from_dict(json.loads(json.dumps(to_dict(EDIT)))) == EDIT  # 63-bit seeds too
    answer = Answer("q", "g", "t", {"exact": 1.0, "f1": 0.5}, False)
    full = PassageTrial("p/0", "p", "arm", EDIT, 5, (answer,), "f1", "ok", "", 70, 900, 3.5, 0.5)
    assert PassageTrial.from_dict(json.loads(json.dumps(to_dict(full)))) == full
    bare = PassageTrial.from_dict(to_dict(PassageTrial("p", "p", "frozen", None, 0, (answer,), "exact")))
    assert bare.edit is None and math.isnan(bare.first_loss)


def test_a_number_that_is_not_finite_is_null_on_disk_and_nan_again() -> None:
    diverged = PassageTrial("p", "p", "arm", EDIT, 0, (), "exact", "diverged", "loss is nan", 3, 10, 2.0, math.inf)
    row = to_dict(diverged)
    text = json.dumps(row, allow_nan=False)
    assert row["last_loss"] is None
    again = PassageTrial.from_dict(json.loads(text))
    assert math.isnan(again.last_loss) and again.first_loss == 2.0 and again.edit.text == EVIL


def test_accuracy_is_a_share_and_missing_where_nothing_was_answered() -> None:
    assert trial("p", [1, 0, 0, 1]).accuracy == 0.5
    assert trial("p", [1, 0, 0, 0], blanks=2).mean("blank") == 0.5
    assert trial("p", [1, 0], outcome="empty_edit").accuracy == 0.5
    assert math.isnan(trial("p", [], outcome="ok").accuracy)
    assert math.isnan(trial("p", [1, 1], outcome="diverged").accuracy)  # never 0, never 1
    assert math.isnan(trial("p", [1, 1], outcome="diverged").mean("blank"))


def test_by_passage_is_the_mean_of_trials_and_a_failed_one_stays_visible() -> None:
    trials = [trial("a", [1, 0], name="a0"), trial("b", [1]), trial("a", [1, 1], name="a1")]
    assert by_passage(trials, "exact") == {"a": 0.75, "b": 1.0}
    failed = [trial(p, [], outcome="diverged", name=f"{p}/failed") for p in "bc"]
    means = by_passage(trials + failed, "exact")
    assert (means["a"], means["b"]) == (0.75, 1.0) and math.isnan(means["c"])


def test_faces_in_jupyter_escape_what_a_model_wrote() -> None:
    answered = PassageTrial("p", "p", EVIL, EDIT, 0, (Answer(EVIL, EVIL, EVIL, {EVIL: 0.0}, False),), EVIL, "ok")
    failed = PassageTrial("q", "p", "arm", EDIT, 0, (), "exact", "diverged", EVIL)
    passage = Passage(EVIL, EVIL, EVIL, made(1)[0].questions)
    whole = Round(1, (answered, failed), (0.0, math.nan), ("p/0",), 0.3)
    views = [show.side_by_side({EVIL: [EDIT], "after": [answered]})]
    for item in (EDIT, answered, failed, passage, whole, *views):
        assert "<script>" not in item._repr_html_(), type(item).__name__
        assert "&lt;script&gt;" in item._repr_html_()
    assert "own" not in replace(failed, arm="own_untrained")._repr_html_()  # arms are shown by label, never by key
    assert "diverged" in failed._repr_html_() and "nan" not in failed._repr_html_()


def test_what_is_right_can_be_read_on_white_and_in_the_dark() -> None:
    def light(paint: str) -> float:
        parts = [int(paint[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    face = trial("p", [1, 0])._repr_html_()
    paints = set(re.findall(r"color:(#\w{6})", face))
    assert len(paints) == 2
    for paint in paints:
        assert light("#ffffff") / light(paint) > 3.9 and light(paint) / light("#1e2129") > 3.9, paint


def test_a_long_text_is_cut_in_the_face_but_not_in_the_record() -> None:
    long = SelfEdit("p/0", "p", "x" * 100_000, "policy")
    assert len(long._repr_html_()) < 3000 and "100000 characters" in long._repr_html_()
    assert len(SelfEdit.from_dict(to_dict(long)).text) == 100_000


def test_a_round_shows_the_kept_edits_and_the_worst_and_survives_having_none() -> None:
    def one(k: int, text: str) -> PassageTrial:
        return trial("p", [1.0], name=f"p/{k}", edit=SelfEdit(f"p/{k}", "p", text, "policy"))

    trials = (one(0, "bad"), one(1, "kept"), one(2, "worst"))
    face = Round(3, trials, (0.5, 1.0, 0.0), ("p/1",))._repr_html_()
    assert "kept 1" in face and "mean reward 0.50" in face
    assert face.index("kept</div>") < face.index("worst</div>") and "bad</div>" not in face
    assert "Round 1" in Round(1, (), (), ("p/0",))._repr_html_()  # the control scores nothing


def test_a_failed_trial_does_not_hide_the_mean_reward_of_a_round() -> None:
    trials = (trial("p", [1.0], name="p/0", edit=EDIT), trial("p", [], outcome="diverged", name="p/1", edit=EDIT))
    assert "mean reward 1.00" in Round(1, trials, (1.0, math.nan), ("p/0",))._repr_html_()


def test_the_loss_mask_colours_what_carries_loss() -> None:
    from seal_lib.training.jobs import pad_examples

    tokenizer = seedling()[1]
    ids = tokenizer("Annals <b>")["input_ids"]
    markup = show.loss_mask([pad_examples(ids, "eos", 2048, tokenizer.eos_token_id)], tokenizer)._repr_html_()
    assert markup.count("#c9ecd2") == len(ids)  # all but the first token, and the end of text
    assert markup.count("#eeeeee") == 1 and "<b>" not in markup


def test_a_seed_is_the_same_in_every_process_and_differs_by_any_part() -> None:
    assert seeds.derive_seed(0, "p-1", "sample", 3) == seeds.derive_seed("0", "p-1", "sample", "3")
    parts = [(0, "p", "a"), (1, "p", "a"), (0, "q", "a"), (0, "p", "b"), (0, "pa", ""), ("0p", "a"), (0, "p"), ()]
    values = [seeds.derive_seed(*p) for p in parts]
    assert len(set(values)) == len(parts) and all(0 <= v < 2**63 for v in values)
    code = "from seal_lib.seeds import *; print(derive_seed(7, 'unit', 'purpose'), rng(7, 'x').random())"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"PYTHONHASHSEED": salt},
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert told == {f"{seeds.derive_seed(7, 'unit', 'purpose')} {seeds.rng(7, 'x').random()}\n"}
