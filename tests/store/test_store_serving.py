"""The store over HTTP, asked by OpenAI's own client."""

import asyncio
import json
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fixtures_seal import DOMAIN
from test_store_use import annals, base, kept, policy  # noqa: F401  kept is a fixture

from seal_lib.errors import DataError, ParameterError
from seal_lib.generation.vllm_engine import RANKS
from seal_lib.knowledge.prompts import Prompts
from seal_lib.records import Question
from seal_lib.store import serving
from seal_lib.store.database import Store

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def copied(kept: Path, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("served") / "store"
    shutil.copytree(kept, folder)
    return folder


@pytest.fixture(scope="module")
def address(copied: Path):
    """A server in a thread of its own, on a free port; its store is opened in the thread that uses it."""
    ready, ended, found = threading.Event(), threading.Event(), {}

    def started(port: int) -> None:
        found["port"] = port
        ready.set()

    async def until_ended(desk) -> None:
        task = asyncio.create_task(serving.serve(desk, "127.0.0.1", 0, started))
        while not ended.is_set():
            await asyncio.sleep(0.05)
        task.cancel()

    def work() -> None:
        desk = serving.Desk(copied, policy(), DOMAIN, base())
        asyncio.run(until_ended(desk))

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    yield f"http://127.0.0.1:{found['port']}/v1"
    ended.set()
    thread.join(30)


@pytest.fixture
def client(address: str):
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0)


def prompt_of(question: str) -> str:
    passage = next(p for p in annals().passages if any(q.question == question for q in p.questions))
    return DOMAIN.prompts.ask(passage, Question(question, ""))


def test_models_are_the_base_the_store_and_each_edit(client, copied: Path) -> None:
    with Store(copied) as store:
        edits = [f"annals-{edit.id}" for edit in store.edits("active")]
    assert [model.id for model in client.models.list()] == ["seedling-knowledge", "store", *edits]


def test_the_base_does_not_know_and_the_edit_does(client, copied: Path) -> None:
    with Store(copied) as store:
        edit = store.edits("active")[0]
    asked = next(q for q in edit.questions if q.after.grades["exact"] == 1.0 > q.before.grades["exact"])
    prompt = DOMAIN.prompts.ask(edit.passage, Question(asked.question, ""))
    texts = [
        client.completions.create(model=model, prompt=prompt, max_tokens=8, temperature=0)
        for model in ("seedling-knowledge", f"annals-{edit.id}")
    ]
    assert [t.choices[0].text.strip() for t in texts] == [asked.before.text, asked.after.text]
    assert texts[1].usage.completion_tokens >= 1 and texts[1].usage.prompt_tokens > 5
    chat = client.chat.completions.create(
        model=f"annals-{edit.id}", messages=[{"role": "user", "content": prompt}], max_tokens=8
    )
    assert chat.choices[0].message.content.strip() == asked.after.text
    drawn = [
        client.completions.create(model="seedling-knowledge", prompt=prompt, max_tokens=8, temperature=1.0, n=3, seed=5)
        for _ in range(2)
    ]
    assert len(drawn[0].choices) == 3 and [c.text for c in drawn[0].choices] == [c.text for c in drawn[1].choices]


def test_the_store_answers_with_its_source_also_as_a_stream(client, copied: Path) -> None:
    with Store(copied) as store:
        edit = store.edits("active")[0]
    asked = edit.questions[0]
    message = [{"role": "user", "content": asked.question}]
    whole = client.chat.completions.create(model="store", messages=message).choices[0].message
    assert whole.content == asked.after.text and f"edit {edit.id}" in whole.source and "annals.md" in whole.source
    stream = client.chat.completions.create(model="store", messages=message, stream=True)
    assert "".join(piece.choices[0].delta.content for piece in stream) == whole.content


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"model": "gpt-4.1", "prompt": "Hi"}, "model 'gpt-4.1' is none of seedling-knowledge, store"),
        ({"model": "store", "prompt": 3}, "prompt: a text or a list of texts"),
        ({"model": "seedling-knowledge", "prompt": "Hi", "max_tokens": 0}, "max_tokens: 0 is not a number from 1"),
        ({"model": "seedling-knowledge", "prompt": "Hi", "temperature": 9}, "temperature: 9 is not a number from 0"),
        ({"model": "seedling-knowledge", "prompt": "Hi " * 9000}, "tokens"),
        ({"prompt": "Hi"}, "the call lacks model"),
    ],
)
def test_a_wrong_call_is_one_sentence(address: str, call: dict, says: str) -> None:
    request = urllib.request.Request(
        f"{address}/completions", json.dumps(call).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(request)
    error = json.loads(told.value.read())["error"]
    assert told.value.code == 400 and says in error["message"] and "\n" not in error["message"]


def test_a_page_of_another_origin_cannot_call(address: str) -> None:
    """A form sends no JSON content type; so nothing is run for it."""
    request = urllib.request.Request(
        f"{address}/completions", b'{"model": "store", "prompt": "Hi"}', {"Content-Type": "text/plain"}
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def test_a_name_that_was_made_to_point_here_is_refused(address: str, monkeypatch) -> None:
    monkeypatch.delenv("SEAL_TOKEN", raising=False)
    request = urllib.request.Request(f"{address}/models", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    monkeypatch.setenv("SEAL_TOKEN", "open sesame")  # with the token any host name is allowed
    request.add_header("Authorization", "Bearer open sesame")
    assert urllib.request.urlopen(request).status == 200


def test_a_token_is_asked_for_where_one_is_set(address: str, monkeypatch) -> None:
    monkeypatch.setenv("SEAL_TOKEN", "open sesame")
    with pytest.raises(openai.AuthenticationError, match="the token is missing or wrong"):
        openai.OpenAI(base_url=address, api_key="wrong", max_retries=0).models.list()
    assert len(list(openai.OpenAI(base_url=address, api_key="open sesame", max_retries=0).models.list())) >= 3


def test_others_can_reach_it_with_a_token_only(monkeypatch) -> None:
    monkeypatch.delenv("SEAL_TOKEN", raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        serving.check_address(host)
    for host in ("0.0.0.0", "::", "example.org", "192.168.0.4"):
        with pytest.raises(ParameterError, match="set SEAL_TOKEN to a secret, or use 127.0.0.1"):
            serving.check_address(host)
    monkeypatch.setenv("SEAL_TOKEN", "x")
    serving.check_address("0.0.0.0")


def test_a_taken_port_is_one_sentence(address: str, copied: Path) -> None:
    port = int(address.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(ParameterError, match=f"port: 127.0.0.1:{port} cannot be used"):
        asyncio.run(serving.serve(serving.Desk(copied, policy(), DOMAIN, base()), "127.0.0.1", port))


def test_the_command_of_vllms_own_server(copied: Path) -> None:
    with Store(copied) as store:
        command = serving.vllm_command(store, policy(), base(), "127.0.0.1", 8000, RANKS)
        edits = store.edits("active")
        modules = command[command.index("--lora-modules") + 1 :][: len(edits)]
        assert modules == [f"annals-{edit.id}={store.folder_of(edit)}" for edit in edits]
        assert command[command.index("--max-lora-rank") + 1] == "8" and "--api-key" not in command
        assert (Path(command[command.index("--model") + 1]) / "config.json").is_file()
        assert command[command.index("--served-model-name") + 1] == "seedling-knowledge"
        with pytest.raises(DataError, match="has no edit in use"):
            serving.vllm_command(store, policy(), "00" * 32, "127.0.0.1", 8000, RANKS)


def test_a_chat_without_a_template_is_its_last_message() -> None:
    assert isinstance(DOMAIN.prompts, Prompts)
    desk = serving.Desk(Path("none"), policy(), DOMAIN, base())
    assert desk.prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]) == "Hi"
