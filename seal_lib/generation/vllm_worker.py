"""The child process that runs vLLM; `seal_lib.generation.vllm_engine` starts it and never imports it.

It receives token ids, seeds and folders. Statements about vLLM were checked with version 0.32.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from seal_lib.generation.child import Refused, serve


class EngineWorker:
    """The vLLM engine of this process; vLLM's own multiprocessing is off."""

    def __init__(self):
        self.llm = None

    def start(self, tick: Callable[[], None], **arguments) -> dict:
        """Create the engine; ``arguments`` are those of ``vllm.LLM``."""
        from vllm import LLM

        self.llm = LLM(**arguments)
        return {}

    def base(self, tick: Callable[[], None], folder: str) -> dict:
        """Load other weights of the same shapes into the running engine.

        vLLM then drops its adapters by itself, but it would keep using cached keys and values of the old weights.
        """
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _weights(Path(folder))})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset after a change of weights")
        return {}

    def generate(self, tick: Callable[[], None], rows: list, adapters: dict, at_once: int, **sampling) -> dict:
        """Generate and return the token ids of each row.

        A row is [prompt ids, seed, name of its adapter or null]; ``adapters`` maps a name to [id, folder]. At most
        ``at_once`` rows are in the engine at a time.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        engine = self.llm.llm_engine
        loras = {name: self._adapter(name, *about) for name, about in adapters.items()}
        schema = sampling.pop("schema")
        if schema is not None:
            sampling["structured_outputs"] = StructuredOutputsParams(grammar=_grammar(schema))
        out: list[list[int]] = [[] for _ in rows]
        waiting = list(enumerate(rows))[::-1]
        while waiting or engine.has_unfinished_requests():
            while waiting and engine.get_num_unfinished_requests() < at_once:
                number, (ids, seed, name) = waiting.pop()
                # DELTA returns new tokens only, and only new tokens count as progress
                params = SamplingParams(seed=seed, output_kind=RequestOutputKind.DELTA, **sampling)
                engine.add_request(
                    str(number), {"prompt_token_ids": ids}, params, lora_request=loras[name] if name else None
                )
            for output in engine.step():
                fresh = output.outputs[0].token_ids
                out[int(output.request_id)] += fresh
                if fresh:
                    tick()
        return {"ids": out}

    def _adapter(self, name: str, number: int, folder: str):
        """Return vLLM's request for an adapter, after loading it once: in ``generate`` a bad adapter would hang."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(name, number, folder)
        if number not in self.llm.llm_engine.list_loras():
            try:
                self.llm.llm_engine.add_lora(request)
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                raise Refused(f"vLLM does not take an adapter: {text}; use engine hf for it.") from error
        return request


def _grammar(schema: str) -> str:
    """Convert a JSON schema to a grammar of texts that are spaced like ``json.dumps``.

    By itself vLLM would allow any white space, with which a weak model fills its token budget, or none, which is not
    what policies have learnt to write; and its flag for a single request (``disable_any_whitespace``) has no effect.
    """
    import xgrammar

    try:
        return str(xgrammar.Grammar.from_json_schema(schema, any_whitespace=False, separators=(", ", ": ")))
    except Exception as error:
        raise Refused(f"the JSON schema cannot be made a grammar: {' '.join(str(error).split())[:200]}.") from error


def _weights(folder: Path) -> Iterator:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                yield name, tensors.get_tensor(name)


if __name__ == "__main__":
    worker = EngineWorker()
    serve(sys.argv[-2:], {"start": worker.start, "base": worker.base, "generate": worker.generate})
