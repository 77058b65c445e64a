"""Check what a notebook needs to run: memory for its work, disk, and its model and data in this machine's caches.

Looks only at this machine's files and caches, never at a network; each lack is one sentence with the way out. Knows
parameters and work (``cells``), but no prices and no table (`seal_lib.plan`). Imports no torch itself.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from seal_lib import models, paths
from seal_lib.errors import SealError
from seal_lib.generation.others import Other
from seal_lib.knowledge.notes import NOTE_FILES
from seal_lib.models import budget
from seal_lib.plan import cells, lengths
from seal_lib.plan.costs import Device
from seal_lib.plan.work import CACHE_TOKENS, Phase
from seal_lib.report.arms import plain
from seal_lib.runs.lifecycle import EVALUATES
from seal_lib.training.jobs import pad_examples

#: files of SQuAD at its pinned revision, and their sizes in bytes
SQUAD_FILES = {
    "validation": ("plain_text/validation-00000-of-00001.parquet", 1.82e6),
    "train": ("plain_text/train-00000-of-00001.parquet", 14.46e6),
}
GATED = ("meta-llama/",)


# ---------------------------------------------------------------------------------------------- memory


def budgets(p: Mapping, work: list[Phase], shape: budget.Shape, device: Device) -> list[budget.Budget]:
    """Return the memory budgets of training with answering, of the M-step, and of training all weights."""
    dtype = str(p["dtype"])
    weights = budget.weight_bytes(shape, dtype)
    kv = max((int(min(w.rows * (w.prompt + w.longest), CACHE_TOKENS)) for w in work), default=0)
    trainings = [w for w in work if w.kind == "train"]
    finetunings = [w for w in work if w.kind == "sft" and w.rank]
    longest = _longest(p)
    if trainings:
        slots, batch = max(w.slots for w in trainings), max(w.batch for w in trainings)
        if p.get("tokens_per_step"):
            slots = int(p["slots"])  # all slots are in memory, not only those of one step
        slots = max(1, slots)  # 0 means as many as fit, so plan for at least one
        tokens, rank = int(slots * batch * longest), int(p["rank"])
        bound = int(p.get("tokens_per_step") or (budget.STEP_TOKENS if shape.parameters > budget.LARGE else 0))
        if bound:  # slots then take turns, at least one per step
            tokens = min(tokens, max(bound, int(batch * longest)))
        if "length" in p:  # the earlier edits stay in the slot as frozen ranks
            rank *= int(p["length"])
        # `auto` means vLLM on a GPU, see `seal_lib.generation.engines`
        engine = "vllm" if device.is_gpu and p.get("engine", "hf") != "hf" and dtype != "4bit" else "hf"
        there = {"kv_tokens": kv, "engine": engine, "total": device.memory}
        made = budget.colocated(shape, dtype, slots, str(p["targets"]), rank, tokens, tokens, **there)
    else:
        parts = {f"weights ({dtype})": weights, f"keys and values of {kv} tokens": budget.kv_bytes(shape, kv, dtype)}
        made = budget.Budget(f"{shape.name}, generation", parts, device.memory)
    if finetunings:
        made.parts["earlier policies of the loop (2)"] = 2 * weights
    made.parts |= _continual(p, shape, trainings)
    found = [made]
    if finetunings:
        found.append(_m_step(p, finetunings[0], shape, device, 2 * weights))
    if whole := [w for w in work if w.kind == "sft" and not w.rank]:
        found.append(_all_weights(p, whole[0], shape, device))
    for one in found:
        if not device.is_gpu:
            one.parts.pop("CUDA context", None)
    return found


def check(notebook: str, p: Mapping, device: Device) -> str:
    """Return the memory budgets of a notebook as text, before it starts on a GPU; "" if it does not use one.

    Raises:
        ParameterError: they do not fit the device.
    """
    if "dtype" not in p or not device.is_gpu or p.get("device") == "cpu":
        return ""
    try:
        work, shape = cells.of(notebook, p), budget.shape_of(str(p["model"]))
    except SealError as error:
        return f"memory is not planned: {error}"
    return "\n".join(one.check().table() for one in budgets(p, work, shape, device)) if work else ""


def _m_step(p: Mapping, one: Phase, shape: budget.Shape, device: Device, weights: float) -> budget.Budget:
    """Return the budget of finetuning on the longest expected pairs.

    A GPU takes the pairs one by one (`seal_lib.loops.policy.pieces`).
    """
    text = lengths.profile(str(p.get("practice") or p["passages"]))
    long = text.longest(round(one.units), p["edit_tokens"]) if isinstance(text, lengths.TextLengths) else text.edit
    rows = 1 if device.is_gpu else one.batch
    tokens = int(rows * (text.write + long))
    activations = budget.activation_bytes(shape, tokens, one.targets, dtype=str(p["dtype"]), rank=one.rank)
    again = {"weights, until they are cut over the cards": weights / 2} if int(p.get("cards", 1)) > 1 else {}
    parts = {
        "weights, two policies": weights,
        **again,
        "adapter in training": budget.slot_bytes(shape, one.targets, one.rank),
        f"activations of {tokens} tokens": activations,
        "logits of the completions": budget.logits_bytes(shape, int(rows * long)),
        "CUDA context": budget.CONTEXT,
    }
    return budget.Budget(f"{shape.name}, M-step", parts, device.memory)


def _all_weights(p: Mapping, one: Phase, shape: budget.Shape, device: Device) -> budget.Budget:
    """Return the budget of training all weights.

    It holds a copy of the policy, its gradients and AdamW's moments, all in the weights' type. With several cards
    (`seal_lib.training.several`) it is the budget of the first card, which holds the whole policy beside its share.
    """
    weights = budget.weight_bytes(shape, str(p["dtype"]))
    rows = 1 if device.is_gpu else one.batch
    tokens = int(rows * min(p["cpt_length"], one.tokens / one.steps))
    cards = int(p.get("cards", 1))
    layer = weights * shape.linear_parameters / shape.parameters / shape.layers
    ends = weights * shape.embedding_parameters / shape.parameters
    parts = {"weights, the policy and its copy": 2 * weights, "gradients": weights, "moments of AdamW": 2 * weights}
    if cards > 1:
        parts = {
            "weights, the policy": weights,
            f"1/{cards} of weights, gradients and moments, or the copy afterwards": max(4 * weights / cards, weights),
            "embeddings and two layers whole, with gradients": 2 * ends + 3 * layer,
        }
    kept = budget.activation_bytes(shape, tokens, one.targets, dtype=str(p["dtype"]), rank=int(p["rank"]))
    parts |= {f"activations of {tokens} tokens": kept, "logits": budget.logits_bytes(shape, tokens)}
    parts["CUDA context"] = budget.CONTEXT * min(cards, 2)
    return budget.Budget(f"{shape.name}, all weights", parts, device.memory)


def _longest(p: Mapping) -> float:
    """Return the tokens of a long training document with its pads."""
    document = p.get("document_path")
    text = lengths.profile(lengths.kind_of(document) if document else str(p.get("passages") or p["tasks"]))
    if isinstance(text, lengths.PuzzleLengths):
        return min(text.example_longest, p.get("example_tokens", 8192))
    document = max(text.passage, sorted(max(d) for d in text.documents)[len(text.documents) // 2])
    return len(pad_examples([1] * round(document), str(p.get("pad_loss", "eos"))).ids)


def _continual(p: Mapping, shape: budget.Shape, trainings: list[Phase]) -> dict[str, float]:
    """Return the memory of the anchors' teacher distributions and of dense statistics, for the arms that have them."""
    if "anchors" not in p or not trainings:
        return {}
    slots, parts = max(w.slots for w in trainings), {}
    arms = {plain(str(name)) for name in p["arms"]}
    if arms & {"kl", "kl_replay"}:  # an anchor has 50 tokens
        parts[f"teachers of {slots} streams"] = 4.0 * slots * (p["anchors"] * 50) * shape.vocabulary
    if "ewc" in arms:
        dense = 4.0 * shape.layers * sum(map(math.prod, map(shape.sides, budget.target_names(str(p["targets"])))))
        merged = budget.weight_bytes(shape, str(p["dtype"]))
        parts[f"EWC: dense weights of {slots} streams, a merged model"] = dense * (2 * slots + 2) + merged
    return parts


# ---------------------------------------------------------------------------------------------- data, models, disk


def hub_file(repository: str, name: str, revision: str | None, kind: str = "model") -> Path | None:
    """Return a file of the Hub in this machine's cache, None if it is not there; looks only at the disk."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=revision, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def need_model(name: str, tokenizer_only: bool = False) -> tuple[str, float]:
    """Return a sentence about what is missing of a model, or "", and the bytes to download."""
    source, revision = models.resolve(name)
    if Path(source).is_dir():
        return "", 0.0
    if not revision:
        return f"model {name} has no pinned revision; name it {name}@COMMIT.", 0.0
    wanted = {"tokenizer.json"}
    if not tokenizer_only:
        index = hub_file(source, "model.safetensors.index.json", revision)
        shards = (
            json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index else ["model.safetensors"]
        )
        wanted = {"config.json", *shards}
    if all(hub_file(source, file, revision) for file in wanted):
        return "", 0.0
    size = 17e6 if tokenizer_only else budget.weight_bytes(budget.shape_of(name), "bfloat16") + 17e6
    gated = "; it is gated: accept its licence there and log in" if name.startswith(GATED) else ""
    what = "tokenizer of model" if tokenizer_only else "model"
    return f"{what} {name}@{revision[:8]} is not in the cache ({size_text(size)} to download{gated}).", size


def need_others(p: Mapping) -> list[str]:
    """Return sentences about what is missing (a key, a model) to ask a judge, a rater or another writer."""
    lacking = []
    for name, key_env in ((p.get(key), p.get(f"{key}_env", "")) for key in ("judge", "external", "rater")):
        if not name or name.endswith(NOTE_FILES):  # files are checked with the parameters
            continue
        try:
            other = Other(name, key_env)
            lacking.append("" if other.address else need_model(name)[0])
            other.check()
        except SealError as error:
            lacking.append(str(error))
    return list(dict.fromkeys(filter(None, lacking)))


def need_data(source: str) -> tuple[str, float]:
    """Return a sentence about what is missing of a source of passages or puzzles, or "", and the bytes to download."""
    from seal_lib.knowledge.data import SQUAD_REVISION

    kind, _, rest = source.partition(":")
    if kind == "world":
        return "", 0.0
    if kind == "hub":
        repository, _, split = rest.partition(":")
        if repository != "rajpurkar/squad":
            return f"data {source}: the cache is not looked up for it; make sure that it is there.", 0.0
        file, size = SQUAD_FILES[split or "validation"]
        cache = Path(os.environ.get("HF_DATASETS_CACHE") or hub_home() / "datasets")
        prepared = any(cache.glob(f"rajpurkar___squad/*/*/{SQUAD_REVISION}"))
        if prepared or hub_file(repository, file, SQUAD_REVISION, "dataset"):
            return "", 0.0
        return f"data {source}@{SQUAD_REVISION[:8]} is not in the cache ({size_text(size)} to download).", size
    if paths.given(source).exists():
        return "", 0.0
    way = "run `git clone https://github.com/fchollet/ARC-AGI data/ARC-AGI`" if "ARC-AGI" in source else "give its path"
    return f"data {source} does not exist; {way}.", 0.0


def hub_home() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def run_bytes(p: Mapping, work: list[Phase], shape: budget.Shape | None) -> float:
    """Return the disk of a run folder: the rows and the policies' adapters (float32).

    ``keep_adapters`` adds the adapters of evaluated arms, and at most one copy of the weights per policy.
    """
    total = 2e3 * sum(w.units for w in work if w.kind in ("train", "answer")) + 5e6
    if shape is None:
        return total
    learned = [w for w in work if w.kind == "sft"]
    total += sum(4.0 * shape.adapter_parameters(w.targets, w.rank) for w in learned)
    if p.get("keep_adapters"):
        kept = [w for w in work if w.kind == "train" and EVALUATES in w.phase]
        total += sum(4.0 * w.units * shape.adapter_parameters(w.targets, w.rank) for w in kept)
        total += len(learned) * budget.weight_bytes(shape, str(p["dtype"]))
    return total


def scratch_bytes(p: Mapping, shape: budget.Shape | None) -> float:
    """Return the extra disk during a forgetting study: each stream's weights after its last two edits.

    They are removed arm by arm.
    """
    if shape is None or "n_sequences" not in p:
        return 0.0
    return 2 * p["n_sequences"] * 4.0 * shape.adapter_parameters(str(p["targets"]), p["rank"] * p["length"])


def free_disk(folder: Path) -> float:
    """Return the free bytes on the disk that holds a folder or would hold it."""
    return float(shutil.disk_usage(existing(folder)).free)


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def size_text(count: float) -> str:
    return f"{count / budget.GB:.1f} GB" if count >= 0.1 * budget.GB else f"{count / 1e6:.0f} MB"
