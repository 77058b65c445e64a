"""Serve a store with OpenAI's interface: vLLM's own server on a GPU, a small one on the Hugging Face engine elsewhere.

Models: the base by its name; each active edit as DOCUMENT-NUMBER (as `seal_lib.store.sharing.export` names folders);
and ``store``, which answers a question as ``seal ask`` does, by the route that the store's measurements choose. The
server listens on this machine only, unless a token (environment variable SEAL_TOKEN) is set.
"""

import asyncio
import hmac
import json
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from seal_lib import models
from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.knowledge.domain import Knowledge
from seal_lib.loops.policy import Policy
from seal_lib.runs.lifecycle import Scratch
from seal_lib.seeds import derive_seed
from seal_lib.store.asking import ask
from seal_lib.store.database import Store
from seal_lib.store.schema import Edit
from seal_lib.store.search import Search
from seal_lib.store.sharing import name_of
from seal_lib.store.texts import has_texts

TOKEN = "SEAL_TOKEN"
HYBRID = "store"  # name of the model that answers from the whole store
MOST_TOKENS = 4096  # of one answer
MOST_BYTES = 4 * 2**20  # of one request


def check_address(host: str) -> None:
    """Raise ParameterError if other machines can reach an address, and no token is set."""
    if not _local(host) and not os.environ.get(TOKEN):
        raise ParameterError(
            f"host: {host!r} can be reached from other machines, and nobody asks who calls; set {TOKEN} to a secret, "
            "or use 127.0.0.1."
        )


def _local(host: str) -> bool:
    """Return True if only this machine can be reached under that name."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _edits_by_name(store: Store, weights: str) -> dict[str, Edit]:
    """Return name of a model → the active edit of this base that it stands for."""
    return {name_of(edit): edit for edit in store.edits("active", weights=weights)}


def vllm_command(store: Store, policy: Policy, weights: str, host: str, port: int, ranks: Sequence[int]) -> list[str]:
    """Return the command that starts vLLM's server with the store's adapters; its key is in VLLM_API_KEY, not here.

    Args:
        ranks: the values of max_lora_rank that vLLM takes.

    Raises:
        DataError: the store has no active edit on this base, or an adapter's rank is beyond what vLLM takes.
    """
    edits = _edits_by_name(store, weights)
    if not edits:
        raise DataError(f"{store.folder} has no edit in use on {policy.base.name}; learn a document first.")
    rank = max(store.adapter(edit, policy.base).rank for edit in edits.values())
    fits = next((most for most in ranks if most >= rank), None)
    if fits is None:
        raise DataError(f"An adapter has rank {rank}, vLLM takes {ranks[-1]} at most; learn with a smaller rank.")
    source, pinned = models.resolve(policy.base.name)
    revision = policy.base.revision or pinned
    options = {
        "model": source,
        "host": host,
        "port": port,
        "served-model-name": policy.base.name,
        "dtype": policy.base.dtype,
        "max-lora-rank": fits,
        **({"revision": revision} if revision else {}),
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    modules = [f"{name}={store.folder_of(edit)}" for name, edit in edits.items()]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, *given, "--enable-lora", "--lora-modules", *modules]


@dataclass
class Desk:
    """Answers requests with the base, an edit's adapter, or the whole store.

    ``folder``: the folder of the store. Every request opens it anew and so sees what other processes changed.
    """

    folder: Path
    policy: Policy
    domain: Knowledge
    weights: str
    search: Search = field(default_factory=Search)
    begun: int = field(default_factory=lambda: int(time.time()))

    def models(self) -> list[str]:
        with Store(self.folder) as store:
            return [self.policy.base.name, HYBRID, *_edits_by_name(store, self.weights)]

    def complete(self, model: str, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """Return ``sampling.n`` completions of each prompt by the base or by an edit's adapter."""
        with Store(self.folder) as store:
            edit = _edits_by_name(store, self.weights).get(model)
            adapter = store.adapter(edit, self.policy.base) if edit else None
        requests = [Request(prompt, derive_seed(seed, i, prompt), adapter) for i, prompt in enumerate(prompts)]
        return self.policy.generator().generate(requests, sampling)

    def asked(self, question: str) -> tuple[str, str]:
        """Return (answer, where it comes from) of the whole store."""
        with Store(self.folder) as store:
            (reply,) = ask(Scratch(), store, self.policy, [question], self.domain, search=self.search, compare=False)
        source = f"{reply.document}, {reply.place}; " if reply.document else ""
        return reply.answer, f"{source}{reply.why}"

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a chat as a prompt: by the model's own template, or without one the last message as it is."""
        tokenizer = self.policy.tokenizer
        if getattr(tokenizer, "chat_template", None):
            told = [{"role": m["role"], "content": m["content"]} for m in messages]
            return str(tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True))
        return messages[-1]["content"]


class _Call(web.RequestHandler):
    """Base of all requests: it checks who may make them, and reports errors in OpenAI's form."""

    def initialize(self, desk: Desk, worker: ThreadPoolExecutor) -> None:
        self.desk, self.worker = desk, worker

    def prepare(self) -> None:
        token = os.environ.get(TOKEN, "")
        if not token and not _local(self.request.host_name):  # a foreign name that points here (DNS rebinding)
            self.fail(403, f"{self.request.host_name} is not this machine")
            return
        given = self.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            self.fail(401, "the token is missing or wrong")

    def check_xsrf_cookie(self) -> None:
        """Do nothing: there are no cookies, and another origin's page cannot set the header, nor send JSON unasked."""

    def fail(self, status: int, message: str) -> None:
        self.set_status(status)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.finish({"error": {"message": message, "type": kind, "code": status}})

    def write_error(self, status_code: int, **about: Any) -> None:
        error = (about.get("exc_info") or (None, None))[1]
        known = isinstance(error, SealError)
        self.fail(400 if known else status_code, str(error) if known else "the server failed; see its log")

    async def worked(self, function: Any, *given: Any) -> Any:
        """Run a function in the one thread that uses the model, while the server goes on listening."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, function, *given)

    def body(self, *keys: str) -> dict[str, Any]:
        """Return the request's JSON as values.

        Raises:
            ParameterError: it is not a JSON object, lacks a key, or names a model that is not here.
        """
        if not self.request.headers.get("Content-Type", "").startswith("application/json"):
            raise ParameterError("Content-Type is not application/json.")
        try:
            value = json.loads(self.request.body)
        except (ValueError, RecursionError):
            raise ParameterError("the call is no JSON; send an object.") from None
        missing = [key for key in ("model", *keys) if not isinstance(value, dict) or key not in value]
        if missing:
            raise ParameterError(f"the call lacks {missing[0]}.")
        models = self.desk.models()
        if value["model"] not in models:
            raise ParameterError(f"model {str(value['model'])[:60]!r} is none of {', '.join(models)}.")
        return value

    def sampling(self, value: Mapping[str, Any]) -> Sampling:
        def number(key: str, otherwise: float, low: float, high: float, whole: bool = False) -> Any:
            given = value.get(key)
            given = otherwise if given is None else given
            fits = isinstance(given, int | float) and not isinstance(given, bool) and low <= given <= high
            if not fits or (whole and int(given) != given):
                raise ParameterError(f"{key}: {str(given)[:40]} is not a number from {low:g} to {high:g}.")
            return int(given) if whole else float(given)

        stop = value.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(isinstance(text, str) for text in stop):
            raise ParameterError("stop: texts are needed.")
        limit = "max_completion_tokens" if value.get("max_completion_tokens") is not None else "max_tokens"
        return Sampling(
            number(limit, self.desk.domain.inner.answer_tokens, 1, MOST_TOKENS, whole=True),
            number("temperature", 0.0, 0, 2),
            number("top_p", 1.0, 1e-6, 1),
            number("n", 1, 1, 16, whole=True),
            (*stop, *self.desk.domain.answering.stop),
        )

    async def answer(self, value: Mapping[str, Any], prompts: Sequence[str], chat: bool = False) -> None:
        """Send the answers to prompts (for the whole store: questions) in OpenAI's form; a stream is a single piece."""
        done: list[tuple[Completion, dict[str, str]]]
        if value["model"] == HYBRID:
            told = [await self.worked(self.desk.asked, prompt) for prompt in prompts]
            done = [(Completion(text, self.length([text]), "eos"), {"source": source}) for text, source in told]
        else:
            seed = value.get("seed") if isinstance(value.get("seed"), int) else 0
            several = await self.worked(self.desk.complete, value["model"], prompts, self.sampling(value), seed)
            done = [(completion, {}) for of_prompt in several for completion in of_prompt]
        choices: list[dict[str, Any]] = []
        for number, (completion, more) in enumerate(done):
            ended = "length" if completion.finish == "length" else "stop"
            message = {"message": {"role": "assistant", "content": completion.text, **more}}
            about = {"index": number, "finish_reason": ended, "logprobs": None}
            choices.append(about | (message if chat else {"text": completion.text}))
        whole: dict[str, Any] = {
            "id": f"seal-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": value["model"],
            "choices": choices,
        }
        if not value.get("stream"):
            read, written = self.length(prompts), sum(completion.tokens for completion, _ in done)
            usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            self.finish(whole | {"usage": usage})
            return
        self.set_header("Content-Type", "text/event-stream")
        if chat:
            whole["object"] = "chat.completion.chunk"
            whole["choices"] = [{**choice, "delta": choice["message"]} for choice in choices]
        self.finish(f"data: {json.dumps(whole)}\n\ndata: [DONE]\n\n")

    def length(self, texts: Sequence[str]) -> int:
        return sum(len(self.desk.policy.tokenizer(text)["input_ids"]) for text in texts)


class _Models(_Call):
    def get(self) -> None:
        about = {"object": "model", "created": self.desk.begun, "owned_by": "seal"}
        self.finish({"object": "list", "data": [{"id": name, **about} for name in self.desk.models()]})


class _Completions(_Call):
    async def post(self) -> None:
        value = self.body("prompt")
        prompts = [value["prompt"]] if isinstance(value["prompt"], str) else value["prompt"]
        if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p for p in prompts):
            raise ParameterError("prompt: a text or a list of texts is needed.")
        await self.answer(value, prompts)


class _Chat(_Call):
    async def post(self) -> None:
        value = self.body("messages")
        messages = value["messages"]
        whole = isinstance(messages, list) and all(has_texts(message, "role", "content") for message in messages)
        if not whole or not messages:
            raise ParameterError("messages: a list of {role, content} with texts is needed.")
        prompt = messages[-1]["content"] if value["model"] == HYBRID else self.desk.prompt(messages)
        await self.answer(value, [prompt], chat=True)


def application(desk: Desk) -> web.Application:
    """Return the server; one thread does all work of the model, so requests take turns."""
    about = {"desk": desk, "worker": ThreadPoolExecutor(1, thread_name_prefix="model")}
    routes = {"models": _Models, "completions": _Completions, "chat/completions": _Chat}
    return web.Application([(f"/v1/{path}", handler, about) for path, handler in routes.items()])


async def serve(desk: Desk, host: str, port: int, started: Any = None) -> None:
    """Answer until cancelled. ``started``: called with the port that it listens on (a free one for port 0).

    Raises:
        ParameterError: the port cannot be used.
    """
    try:
        sockets = bind_sockets(port, host)
    except OSError as error:
        raise ParameterError(f"port: {host}:{port} cannot be used ({error.strerror}); choose another.") from error
    server = HTTPServer(application(desk), max_buffer_size=MOST_BYTES)
    server.add_sockets(sockets)
    try:
        if started:
            started(sockets[0].getsockname()[1])
        await asyncio.Event().wait()
    finally:
        server.stop()
