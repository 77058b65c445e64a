"""Endpoints against vLLM's own OpenAI server: the seedling, served on the CPU."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fixtures_seal import NEEDS_VLLM, WORDING, made, seedling

from seal_lib import models
from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.generation.others import Other

pytestmark = list(NEEDS_VLLM)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The URL of a server of vLLM's that serves the seedling under the name ``small``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source, _ = models.resolve("seedling-knowledge")
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(Path(source)), "--port", str(port),
        "--served-model-name", "small", "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
        "--api-key", "s3cr3t-word",
    ]  # fmt: skip
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"
    }  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
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
