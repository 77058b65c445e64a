"""Endpoints against vLLM's own OpenAI server: the seedling, served on the CPU."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fixtures_seal import DOMAIN, NEEDS_VLLM, WORDING, MemoryRun, made, seedling

from seal_lib import models
from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.generation.others import Other
from seal_lib.generation.vllm_engine import RANKS
from seal_lib.loops.policy import Policy, Source
from seal_lib.loops.settings import OuterLoop
from seal_lib.records import Question
from seal_lib.store.database import Store, base_of
from seal_lib.store.learning import OwnQuestions, learn
from seal_lib.store.serving import vllm_command
from seal_lib.store.sharing import name_of
from seal_lib.store.texts import Document

pytestmark = list(NEEDS_VLLM)


@contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[str]:
    """The URL of a server, from when it answers."""
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    with open(log, "w") as file:
        child = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            assert child.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(1)
        yield f"{url}/v1"
    finally:
        os.killpg(child.pid, 15)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The URL of a server of vLLM's that serves the seedling under the name ``small``."""
    port = free_port()
    source, _ = models.resolve("seedling-knowledge")
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(Path(source)),
        "--port",
        str(port),
        "--served-model-name",
        "small",
        "--host",
        "127.0.0.1",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--api-key",
        "s3cr3t-word",
    ]
    with serving(command, port, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


def test_a_store_is_served_by_vllm_with_its_adapters(tmp_path: Path) -> None:
    """The command of `seal serve` on a GPU, here on the CPU: each edit is a model, and says what it was taught."""
    port = free_port()
    policy = Policy("untrained", *seedling(), source=Source("seedling-knowledge"))
    passages = [replace(p, questions=p.questions[:4]) for p in made(2)]
    document = Document("two.md", "here", "ab" * 32, tuple(passages), ("line 1", "line 2"))
    outer, own = OuterLoop(samples=6, edit_tokens=200), OwnQuestions(DOMAIN.prompts, 0)
    with Store(tmp_path / "store") as store:
        learn(MemoryRun(), store, policy, document, DOMAIN, outer, own)
        edits, weights = store.edits("active"), base_of(policy)
        assert edits
        command = [*vllm_command(store, policy, weights, "127.0.0.1", port, RANKS), "--enforce-eager"]
    with serving(command, port, tmp_path / "log") as url:
        known = [model["id"] for model in httpx.get(f"{url}/models").json()["data"]]
        assert known == ["seedling-knowledge", *(name_of(edit) for edit in edits)]
        for edit in edits:
            for asked in edit.questions:
                prompt = DOMAIN.prompts.ask(edit.passage, Question(asked.question, ""))
                for model, answer in (("seedling-knowledge", asked.before), (name_of(edit), asked.after)):
                    call = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stop": ["\n"]}
                    said = httpx.post(f"{url}/completions", json=call, timeout=120).json()["choices"][0]["text"]
                    assert said.strip() == answer.text, (model, asked.question)


def test_texts_of_the_server_are_those_of_the_model(server: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.setenv("MY_KEY", "s3cr3t-word")
    requests = [Request(WORDING.ask(p, q)) for p in made(3) for q in p.questions[:2]]
    sampling = Sampling(12, stop=("\n",))
    expected = [c.text for (c,) in HFGenerator(*seedling()).generate(requests, sampling)]
    counted: dict[str, float] = {}
    other = Other(f"small@{server}/completions", "MY_KEY")
    assert [c.text for c in other.texts(requests, sampling, lambda **n: counted.update(n))] == expected
    assert counted["other_calls"] == len(requests) and counted["other_completion_tokens"] > 0
    assert other.facts()["served"] == ["small"]


def test_the_server_s_refusals_are_told_apart(server: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.setenv("MY_KEY", "another-word")
    with pytest.raises(DataError, match="does not take the key .status 401"):
        Other(f"small@{server}/completions", "MY_KEY").texts([Request("Topic:")], Sampling(4))
    monkeypatch.setenv("MY_KEY", "s3cr3t-word")
    with pytest.raises(DataError, match="does not know the path or the model .status 404"):
        Other(f"large@{server}/completions", "MY_KEY").texts([Request("Topic:")], Sampling(4))
    (long, short) = Other(f"small@{server}/completions", "MY_KEY").texts(
        [Request("Topic: " * 5000), Request("Topic:")], Sampling(4)
    )
    assert long.finish == "failed" and "status 400" in long.reason and short.finish != "failed"
