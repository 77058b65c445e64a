"""Generation by a model behind an OpenAI-compatible HTTP endpoint (vLLM's server, Ollama, a commercial API).

Requests are sent in parallel, retried after a transient error (with growing random pauses, or after the pause that the
server asks for), and bounded by a budget. A request without an answer becomes a completion of finish ``failed`` with
its reason, never a text. An endpoint that rejects the key, does not know the model, or has stopped answering raises an
error; the caller keeps the answers received before (`seal_lib.generation.kept`).

The key is read from the environment when requests are sent, goes into their header, and nowhere else.
"""

import json
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, wait_random_exponential

from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion, Request, Sampling, sample_seed

#: number of consecutive requests without an answer after which the endpoint counts as lost
LOST = 20
_MAX_BYTES = 2**24  # bytes of a reply
PAUSE = 0.5  # s; a try is followed by a random pause of up to twice as long as the one before
LONGEST = 600.0  # s; if a server asks for a longer pause, the request is given up
AGAIN = (408, 409, 425, 429)  # HTTP statuses that are tried again, like those from 500 on
BROKEN = ("error", "abort")  # finish reasons of a broken reply
REFUSED = {401: "does not take the key", 403: "does not take the key", 404: "does not know the path or the model"}


@dataclass(frozen=True)
class Address:
    """A model behind a URL, with the budget for it.

    ``url`` is either the base up to ``/v1``, which is used for chat completions, or a whole address that ends in
    ``/completions`` (the plain prompt is sent) or ``/chat/completions``. ``key_env`` is the environment variable that
    holds the key; with "" no key is sent. ``calls`` and ``seconds`` are the budget of this process: the largest number
    of requests sent (retries count) and of seconds spent waiting. ``at_once`` is the number of parallel requests,
    ``tries`` the largest number of tries of a request, ``patience`` the largest number of seconds of each.
    """

    model: str
    url: str
    key_env: str = ""
    calls: int = 100_000
    seconds: float = 86_400.0
    at_once: int = 8
    tries: int = 6
    patience: float = 120.0

    def __post_init__(self):
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("http", "https") and parts.hostname and self.model and parts.port != 0
        except ValueError:  # a port or a bracket
            sound = False
        if not sound:
            raise DataError("that is no address of a model; write MODEL@https://HOST/v1.")
        if parts.username or parts.password or parts.query:
            raise DataError(
                f"{parts.hostname}: leave user, password and query out of the address; a key comes from an environment "
                "variable."
            )

    @property
    def target(self) -> str:
        """The URL that requests are posted to."""
        url = self.url.rstrip("/")
        return url if url.endswith("/completions") else f"{url}/chat/completions"

    def key(self) -> str:
        """Return the key from the environment; "" if no key is sent.

        Raises:
            DataError: the environment variable is not set or is not plain printable text.
        """
        if not self.key_env:
            return ""
        key = os.environ.get(self.key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            state = "not plain text" if key else "not set"
            raise DataError(
                f"the environment variable {self.key_env}, for the key of {self.url}, is {state}; export it."
            )
        return key


class Again(Exception):
    """A transient error. ``after`` is the pause in seconds that the server asks for."""

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after


class RequestRefused(Exception):
    """A permanent error of one request."""


class Endpoint:
    """The generator of an `Address` (`seal_lib.generation.contract.Generator`), without adapters.

    ``counts`` holds the requests sent (``calls``), the tokens that the server reports (``prompt_tokens``,
    ``completion_tokens``) and the ``failed`` requests; ``reasons`` counts why they failed; ``served`` holds the model
    names that the server reports.
    """

    positions = 2**31 - 1  # the server decides

    def __init__(self, address: Address):
        self.address = address
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.served: set[str] = set()
        self._left = address.seconds
        self._until, self._silent = 0.0, 0
        self._refusal: DataError | None = None  # an error of the endpoint that holds for every request
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._renamed: dict[str, str] = {}  # parameter → the name that this server wants; "": left out
        limits = httpx.Limits(max_connections=address.at_once)
        self._client = httpx.Client(timeout=httpx.Timeout(address.patience), limits=limits)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        rows = [Request(r.prompt, sample_seed(r, k), r.adapter) for r in requests for k in range(sampling.n)]
        found = dict(self.finished(rows, sampling))
        return [[found[i * sampling.n + k] for k in range(sampling.n)] for i in range(len(requests))]

    def finished(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Yield (index of the request, its one completion) in the order of arrival; the request's own seed is sent.

        Raises:
            DataError: the endpoint rejects all requests, or did not answer `LOST` of them in a row; or a request has an
                adapter, or the sampling a JSON schema.
        """
        if sampling.schema is not None or any(request.adapter is not None for request in requests):
            raise DataError(f"{self.address.model}: an endpoint takes neither adapters nor a JSON schema.")
        key, begun = self.address.key(), time.monotonic()
        self._until = begun + self._left
        self._refusal = None
        self._stop.clear()
        pool = ThreadPoolExecutor(self.address.at_once)
        try:
            waiting = {pool.submit(self._ask, r, sampling, key): i for i, r in enumerate(requests)}
            for done in as_completed(waiting):
                completion = done.result()
                failed = completion.finish == "failed"
                self._silent = self._silent + 1 if failed else 0
                if failed:
                    self.counts["failed"] += 1
                    self.reasons[completion.reason] += 1
                yield waiting[done], completion
                if self._silent >= LOST:
                    self._silent = 0
                    raise DataError(
                        f"{self.address.model} at {self.address.url} left {LOST} requests in a row without an answer "
                        f"(the last: {completion.reason}); see to it, or raise its budget, and run again: what was "
                        "answered is kept."
                    )
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._left -= time.monotonic() - begun

    def close(self) -> None:
        self._client.close()

    # ------------------------------------------------------------------ one request

    def _ask(self, request: Request, sampling: Sampling, key: str) -> Completion:
        """Send one request, with retries, and return its completion."""
        pause = wait_random_exponential(multiplier=PAUSE, max=30)
        retrying = Retrying(
            retry=retry_if_exception_type(Again),
            reraise=True,
            sleep=sleep_using_event(self._stop),
            wait=lambda state: max(_after(state), pause(state)),
            stop=self._enough,
        )
        try:
            return retrying(self._once, request, sampling, key)
        except (Again, RequestRefused) as error:
            return Completion("", 0, "failed", str(error))

    def _enough(self, state: RetryCallState) -> bool:
        """Return True if there must be no further try: too many tries, too long a pause, or no budget left."""
        late = _after(state) > LONGEST or time.monotonic() + _after(state) >= self._until
        return state.attempt_number >= self.address.tries or late or self._stop.is_set()

    def _once(self, request: Request, sampling: Sampling, key: str) -> Completion:
        with self._lock:
            left = self._until - time.monotonic()
            if self._refusal:
                raise self._refusal
            if self.counts["calls"] >= self.address.calls or left <= 0:
                raise RequestRefused("the budget is spent")
            self.counts["calls"] += 1
        body = self._body(request, sampling)
        status, headers, raw = self._post(body, key, min(self.address.patience, left))
        if status in REFUSED:
            self._refusal = DataError(
                f"{self.address.url} {REFUSED[status]} (status {status}, model {self.address.model!r}); mend the "
                "address or the key and run again: what was answered is kept."
            )
            raise self._refusal
        if status in AGAIN or status >= 500:
            after = _seconds(headers.get("retry-after", ""))
            raise Again(f"status {status}" + (f", asks for a pause of {after:.0f} s" if after else ""), after)
        if status != 200:
            if status == 400 and self._learn(raw, body):
                raise Again("a parameter was refused")
            said = _said(raw)[:120]
            raise RequestRefused(f"status {status}: {said.replace(key, '…') if key else said}")
        return self._read(raw)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        target = self.address.target
        chat = target.endswith("/chat/completions")
        body = {"model": self.address.model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        body |= {"messages": [{"role": "user", "content": request.prompt}]} if chat else {"prompt": request.prompt}
        body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        body |= {"seed": request.seed % 2**31} if sampling.temperature else {}
        return {name: value for old, value in body.items() if (name := self._renamed.get(old, old))}

    def _post(self, body: dict[str, Any], key: str, patience: float) -> tuple[int, httpx.Headers, bytes]:
        """Post a request and return (status, headers, body) of the reply, complete within ``patience`` seconds."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        end, raw = time.monotonic() + patience, b""
        try:
            with self._client.stream(
                "POST", self.address.target, json=body, headers=headers, timeout=httpx.Timeout(patience)
            ) as reply:
                for piece in reply.iter_bytes():
                    raw += piece
                    if time.monotonic() > end or len(raw) > _MAX_BYTES:
                        raise Again("the reply took too long" if len(raw) <= _MAX_BYTES else "the reply is too large")
                return reply.status_code, reply.headers, raw
        except httpx.TimeoutException as error:
            raise Again("no reply in time") from error
        except httpx.HTTPError as error:
            raise Again(f"no connection ({type(error).__name__})") from error

    def _learn(self, raw: bytes, body: dict[str, Any]) -> bool:
        """Return True if the reply rejects a parameter of ``body`` that can be renamed or left out, and remember it.

        Some servers want another name for ``max_tokens``, or no temperature.
        """
        error = _error(raw)
        name, code = error.get("param"), str(error.get("code"))
        with self._lock:
            if not code.startswith("unsupported") or name not in ("max_tokens", "temperature", "top_p", "seed", "stop"):
                return False
            if name not in self._renamed:
                self._renamed[name] = "max_completion_tokens" if name == "max_tokens" else ""
                if name != "max_tokens":
                    warnings.warn(f"{self.address.model} takes no {name}; it is left out.", stacklevel=2)
            return name in body

    def _read(self, raw: bytes) -> Completion:
        try:
            reply = json.loads(raw)
            choice = reply["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            if isinstance(text, list):  # parts, some of which may be reasoning
                text = "".join(part["text"] for part in text if part["type"] == "text")
            if isinstance(text, str):
                text.encode()  # raises for a lone surrogate, which is half a character
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise Again("a reply that is none") from error
        ended = choice.get("finish_reason")
        if ended == "content_filter":
            raise RequestRefused("the server withheld the reply (content_filter)")
        if ended in BROKEN:
            raise Again(f"the reply ended in {ended}")
        if text is None and ended == "length":  # its reasoning reached the token limit
            text = ""
        if not isinstance(text, str):
            raise Again("a reply without text")
        usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
        used = {name: n for name in ("prompt_tokens", "completion_tokens") if isinstance(n := usage.get(name), int)}
        with self._lock:
            self.counts.update(used)
            self.served |= {reply["model"]} if isinstance(reply.get("model"), str) else set()
        return Completion(text, used.get("completion_tokens", 0), "length" if ended == "length" else "eos")


def _after(state: RetryCallState) -> float:
    """Return the pause in seconds that the server asked for after the last try, 0 if none."""
    error = state.outcome.exception() if state.outcome else None
    return error.after if isinstance(error, Again) else 0.0


def _seconds(header: str) -> float:
    """Return the seconds of a ``Retry-After`` header, 0 for a date, so that the usual pauses apply."""
    try:
        return max(0.0, min(float(header), 86_400.0))
    except ValueError:
        return 0.0


def _error(raw: bytes) -> dict[str, Any]:
    try:
        error = json.loads(raw)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {"message": error}


def _said(raw: bytes) -> str:
    message = _error(raw).get("message")
    return " ".join((message if isinstance(message, str) else raw[:400].decode(errors="replace")).split())
