"""The vLLM engine (`seal_lib.generation.contract.Generator`), which runs in a child process.

One child serves all policies of a process; for another policy its weights are loaded into the running engine. With a
child, vLLM does not patch our process (threads, NUMA), a hang becomes an error within a time limit, and ``close`` frees
all memory. The child's side is `.vllm_worker`.
"""

import atexit
import hashlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.generation.child import Child, scratch
from seal_lib.generation.contract import Completion, Request, Row, Sampling, completed, finish, has_stop
from seal_lib.models.tokens import ends
from seal_lib.training.adapters import Adapter, check_fits

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of max_lora_rank that vLLM accepts
BLOCK = 128  # tokens; a multiple of every block size of vLLM's cache
_NUMBERS = count(1)  # adapter ids, never reused in a process, so that vLLM cannot confuse cached adapters


@dataclass(frozen=True)
class Settings:
    """Settings of the engine. Those that are equal, up to the rank and the time limits, can share one engine.

    ``kv_bytes``: bytes of the KV cache; 0 means space for 100 000 tokens on a GPU, 20 000 on a CPU. ``max_model_len``:
    largest number of tokens of a prompt with its completion; 0 means as many as the model and ``kv_bytes`` allow.
    ``max_num_seqs``: rows decoded at once. ``max_loras``: adapters in one step; ``cpu_loras``: adapters kept loaded.
    ``max_lora_rank``: grows by a restart if an adapter needs it. ``eager``: no compilation and no CUDA graphs (None:
    True on a CPU). ``start_seconds``, ``stall_seconds``: longest time of a start, and without a new token.
    """

    kv_bytes: int = 0
    max_model_len: int = 0
    max_num_seqs: int = 256
    max_loras: int = 8
    cpu_loras: int = 64
    max_lora_rank: int = field(default=16, compare=False)
    eager: bool | None = None
    start_seconds: float = field(default=900.0, compare=False)
    stall_seconds: float = field(default=300.0, compare=False)


class VLLMGenerator:
    """The generator of a policy's texts by the vLLM engine of this process.

    Equal requests get equal completions on a CPU in float32. On a GPU, and in bfloat16, the rest of a batch can change
    the last bits of a logit, and so now and then a token.

    Args:
        batch: the largest number of rows in the engine at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings = Settings(),
        batch: int = 1024,
    ):  # noqa: B008  (frozen)
        plain = (torch.float32, torch.float16, torch.bfloat16)
        if getattr(model.config, "quantization_config", None) is not None or model.dtype not in plain:
            raise DataError(
                f"engine vllm takes float32, float16 and bfloat16 models, not {model.dtype} or quantised weights; use "
                "engine hf."
            )
        self.model, self.tokenizer, self.settings, self.batch = model, tokenizer, settings, batch

    @cached_property
    def kind(self) -> str:
        """The hash of what a running engine cannot change: architecture, number type, device, vocabulary."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key != "_name_or_path"}
        words = sorted(self.tokenizer.get_vocab().items())
        about = [config, str(self.model.dtype), str(self.model.device), words]
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def positions(self) -> int:
        return _lengths(self.model, self.settings)[0]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        if sampling.temperature > 2:
            raise DataError(f"engine vllm takes temperatures up to 2, not {sampling.temperature}; use engine hf.")
        return completed(requests, self.tokenizer, sampling, self.positions, lambda rows: self._decode(rows, sampling))

    def _decode(self, rows: list[Row], sampling: Sampling) -> list[Completion]:
        if not rows:
            return []
        distinct = {id(row.adapter): row.adapter for row in rows if row.adapter is not None}
        for adapter in distinct.values():
            check_fits(self.model, adapter)
        engine = _engine_for(self, max((adapter.rank for adapter in distinct.values()), default=0))
        last = ends(self.model, self.tokenizer)
        # Rows without adapter never share a batch with adapters: on a CPU vLLM 0.32 applies its last adapter to them.
        bare = [i for i, row in enumerate(rows) if row.adapter is None]
        done: dict[int, list[int]] = {}
        for part in (bare, [i for i, row in enumerate(rows) if row.adapter]):
            texts = engine.sample([rows[i] for i in part], sampling, last, self.batch, self.settings)
            done |= zip(part, texts, strict=True)
        return [
            finish(_cut(done[i], self.tokenizer, sampling), self.tokenizer, sampling, last) for i in range(len(rows))
        ]

    def close(self) -> None:
        """End the child process, which frees all its memory; the next generator to be used starts it again."""
        self.model = None
        shutdown()


def _cut(ids: list[int], tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> list[int]:
    """Return the ids up to the token that completes the first stop text."""
    while sampling.stop and has_stop(tokenizer, ids[:-1], sampling.stop):
        ids = ids[:-1]
    return ids


def _lengths(model: PreTrainedModel, settings: Settings) -> tuple[int, int]:
    """Return (largest number of tokens of a prompt with its completion, bytes of the KV cache), or raise DataError."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    one = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize  # bytes a token
    room = settings.kv_bytes or one * (100_000 if model.device.type == "cuda" else 20_000)
    fits = (room // one // BLOCK - 1) * BLOCK  # one block stays free
    longest = min(config.max_position_embeddings, fits, settings.max_model_len or fits)
    if longest < 1:
        raise DataError(f"engine vllm: kv_bytes={room} is less than {2 * BLOCK} tokens need; give {one * 2 * BLOCK}.")
    return longest, room


# ------------------------------------------------------------------------------------------ the process's engine


_engine: "Engine | None" = None


def shutdown() -> None:
    """End the vLLM engine of this process, if there is one."""
    global _engine
    if _engine is not None:
        _engine.child.close()
        _engine = None


atexit.register(shutdown)


def _engine_for(generator: VLLMGenerator, rank: int) -> "Engine":
    """Return the engine with the generator's weights loaded; start or restart it if necessary."""
    global _engine
    settings = generator.settings
    least = _bucket(max(rank, settings.max_lora_rank))
    engine = _engine if _engine is not None and _engine.child.alive and _engine.kind == generator.kind else None
    if engine is None or engine.settings != settings or engine.settings.max_lora_rank < least:
        shutdown()
        engine = _engine = Engine(generator, replace(settings, max_lora_rank=least))
    engine.load_base(generator.model, settings)
    return engine


def _bucket(rank: int) -> int:
    if rank > RANKS[-1]:
        raise DataError(f"engine vllm takes adapters of rank {RANKS[-1]} at most, not {rank}; use engine hf.")
    return next(bucket for bucket in RANKS if bucket >= rank)


def _mark(model: PreTrainedModel) -> tuple:
    """Return a value that changes when a weight is replaced or modified in place (through torch)."""
    return tuple((tensor.data_ptr(), tensor._version) for tensor in model.parameters())


class Engine:
    """The child process with its state: the weights that are loaded and the names of its adapters."""

    def __init__(self, generator: VLLMGenerator, settings: Settings):
        model, self.settings, self.kind = generator.model, settings, generator.kind
        self._names: dict[str, tuple[str, int]] = {}
        folder = scratch("seal-vllm-", model.get_memory_footprint())
        try:
            _write(model, folder / "model")
            generator.tokenizer.save_pretrained(folder / "model")
            command = [sys.executable, "-m", "seal_lib.generation.vllm_worker"]
            self.child = Child(command, "the vLLM engine", folder, _environment(model), "run it again or use engine hf")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        arguments = _arguments(model, settings, folder / "model")
        self.child.call({"do": "start", **arguments}, settings.start_seconds, "raise start_seconds of its settings")
        for file in (folder / "model").glob("*.safetensors"):
            file.unlink()  # the engine has loaded them
        self._settle(model)

    def load_base(self, model: PreTrainedModel, limits: Settings) -> None:
        """Load the weights of ``model`` into the engine, unless they are loaded already."""
        if self._model() is model and self._marked == _mark(model):
            return
        folder = scratch("seal-base-", model.get_memory_footprint())
        try:
            _write(model, folder)
            message = {"do": "base", "folder": str(folder)}
            self.child.call(message, limits.start_seconds, "raise start_seconds of its settings")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._settle(model)

    def _settle(self, model: PreTrainedModel) -> None:
        self._model, self._marked = weakref.ref(model), _mark(model)
        self._names.clear()  # the engine has dropped its adapters

    def sample(
        self, rows: Sequence[Row], sampling: Sampling, last: Sequence[int], at_once: int, limits: Settings
    ) -> list[list[int]]:
        """Return the generated ids of each row; an id of ``last`` ends a text."""
        if not rows:
            return []
        home = self.child.folder / "adapters"
        try:
            names, about = self._save([adapter for _, _, adapter in rows], home)
            message = {
                "do": "generate",
                "rows": [(ids, seed, names[id(adapter)]) for ids, seed, adapter in rows],
                "adapters": about,
                "at_once": at_once,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "stop": list(sampling.stop),
                "schema": sampling.schema,
                # the same tokens end a text as in the Hugging Face engine
                "ignore_eos": True,
                "stop_token_ids": list(last),
            }
            return self.child.call(message, limits.stall_seconds, "raise stall_seconds of its settings")["ids"]
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def _save(self, adapters: Sequence[Adapter | None], home: Path) -> tuple[dict, dict]:
        """Write the adapters as PEFT folders; return {id(adapter): name} and {name: (number, folder)}."""
        names: dict[int, str | None] = {id(None): None}
        about: dict[str, tuple[int, str]] = {}
        for adapter in adapters:
            if adapter is None or id(adapter) in names:
                continue
            digest = adapter.digest()  # the name follows the weights, not the object
            if digest not in self._names:
                number = next(_NUMBERS)
                self._names[digest] = (f"adapter-{number}", number)
            name, number = self._names[digest]
            names[id(adapter)] = name
            if name not in about:  # the folder exists until the call returns, as vLLM may load it several times
                about[name] = (number, str(adapter.save(home / name, "base")))
        return names, about


def _write(model: PreTrainedModel, folder: Path) -> None:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def _arguments(model: PreTrainedModel, settings: Settings, folder: Path) -> dict:
    """Return the arguments of ``vllm.LLM``, with all values that vLLM would guess otherwise."""
    longest, room = _lengths(model, settings)
    on_cpu = model.device.type != "cuda"
    return {
        "model": str(folder),
        "dtype": str(model.dtype).removeprefix("torch."),  # "auto" makes float32 bfloat16
        "generation_config": "vllm",  # not the model's own temperature and end-of-text ids
        "kv_cache_memory_bytes": room,
        "gpu_memory_utilization": 0.05,  # only compared with the free memory, since the line above sets the size
        "max_model_len": longest,
        "max_num_seqs": settings.max_num_seqs,
        # On a CPU no prompt may be prefilled in chunks: a seeded row would end in an error ("offset").
        "enable_chunked_prefill": not on_cpu,
        "max_num_batched_tokens": max(2048 if on_cpu else 8192, settings.max_num_seqs, longest if on_cpu else 0),
        "enforce_eager": on_cpu if settings.eager is None else settings.eager,
        "enable_lora": True,
        "max_loras": settings.max_loras,
        "max_cpu_loras": max(settings.cpu_loras, settings.max_loras),
        "max_lora_rank": settings.max_lora_rank,
        "seed": 0,  # unused, as every row has its own seed
    }


def _environment(model: PreTrainedModel) -> dict[str, str]:
    """Return the environment of the child: no network, no further process, our number of threads, our GPU."""
    # this variable would override the argument and only takes whole GiB
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_CPU_KVCACHE_SPACE"}
    environment |= {
        "PYTHONPATH": paths.importable(),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    if model.device.type == "cuda":
        seen = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        number = model.device.index or 0
        environment["CUDA_VISIBLE_DEVICES"] = seen[number] if seen else str(number)
    else:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # else the sampler's kernels need a compiler and half a minute
    return environment
