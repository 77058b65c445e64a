"""Endpoints against a real HTTP server that is slow, refuses, cuts and babbles; what was answered once is kept."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import warnings

import pytest
from conftest import REPOSITORY
from fake_endpoint import FakeEndpoint

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.generation.endpoint import Address, Endpoint
from seal_lib.generation.kept import Kept, key_of
from seal_lib.generation.others import Other

GREEDY = Sampling(16)


def ask(server: FakeEndpoint, prompts: list[str], sampling: Sampling = GREEDY, **settings) -> list[Completion]:
    engine = Endpoint(Address("fake-model", server.url, **settings))
    try:
        return [c for several in engine.generate([Request(p) for p in prompts], sampling) for c in several]
    finally:
        engine.close()


def test_texts_come_in_the_order_asked_however_late_each_is(serve) -> None:
    def behave(prompt: str, nth: int) -> str:
        time.sleep(0.1 if prompt == "a" else 0)
        return f"said {prompt}"

    server = serve(behave)
    assert [c.text for c in ask(server, list("abcd"))] == ["said a", "said b", "said c", "said d"]
    (body, *_) = server.bodies
    (message,) = body.pop("messages")
    assert body == {"model": "fake-model", "max_tokens": 16, "temperature": 0.0} and message["role"] == "user"
    assert {h["path"] for h in server.headers} == {"/v1/chat/completions"}
    assert not any("Authorization" in h for h in server.headers)


def test_requests_go_side_by_side_but_no_more_than_allowed(serve) -> None:
    def behave(prompt: str, nth: int) -> str:
        time.sleep(0.05)
        return "x"

    server = serve(behave)
    assert len(ask(server, [str(i) for i in range(40)], at_once=10)) == 40
    assert 1 < server.most_at_once <= 10


def test_samples_differ_by_their_seed_and_a_plain_address_gets_the_plain_prompt(serve) -> None:
    server = serve("text")
    engine = Endpoint(Address("m", server.url + "/completions"))
    ((one, two),) = engine.generate([Request("p", 3)], Sampling(8, 1.0, 0.9, 2, ("\n",)))
    assert one == two == Completion("text", 2, "eos")
    first, second = server.bodies
    assert {first["seed"], second["seed"]} and first["seed"] != second["seed"]
    assert first | {"seed": 0} == {
        "model": "m",
        "prompt": "p",
        "max_tokens": 8,
        "temperature": 1.0,
        "top_p": 0.9,
        "stop": ["\n"],
        "seed": 0,
    }
    assert engine.counts == {"calls": 2, "prompt_tokens": 14, "completion_tokens": 4}
    assert engine.served == {"served-model"}


@pytest.mark.parametrize(
    "fault",
    [
        "cut",
        "drop",
        "garbage",
        "shape",
        "empty",
        "half a character \ud83d",
        (500, {}, "down"),
        (503, {}, ""),
        (429, {}, "{}"),
        (408, {}, ""),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(serve, fault) -> None:
    server = serve(lambda prompt, nth: fault if nth < 3 else "yes")
    assert [c.text for c in ask(server, ["a", "b"])] == ["yes", "yes"] and server.calls == 6


@pytest.mark.parametrize("fault", ["cut", "garbage", (500, {}, "down"), (429, {}, "")], ids=str)
def test_what_does_not_pass_is_a_failure_with_its_reason_and_no_text(serve, fault) -> None:
    server = serve(lambda prompt, nth: fault if prompt == "b" else "yes")
    a, b, c = ask(server, ["a", "b", "c"], tries=3)
    assert (a.text, c.text) == ("yes", "yes") and server.seen["b"] == 3
    assert (b.text, b.finish) == ("", "failed") and b.reason


def test_a_server_that_asks_for_a_pause_gets_it(serve) -> None:
    server = serve(lambda prompt, nth: (429, {"Retry-After": "1"}, "") if nth == 1 else "yes")
    begun = time.monotonic()
    assert [c.text for c in ask(server, ["a"])] == ["yes"] and time.monotonic() - begun >= 1.0
    server = serve((429, {"Retry-After": "3600"}, ""))  # longer than there is time: not waited for
    for seconds in (600, 86_400):
        (late,) = ask(server, ["a"], seconds=seconds)
        assert late.finish == "failed" and "a pause of 3600 s" in late.reason
    assert server.calls == 2


def test_a_slow_reply_is_waited_for_so_long_and_no_longer(serve) -> None:
    server = serve("slow")
    (late,) = ask(server, ["a"], patience=0.3, tries=2)
    assert (late.text, late.finish) == ("", "failed") and "in time" in late.reason
    assert [c.text for c in ask(server, ["b"])] == ["yes"]


def test_the_budget_of_calls_and_of_seconds_ends_it(serve) -> None:
    server = serve("yes")
    engine = Endpoint(Address("m", server.url, calls=3))
    said = [c for (c,) in engine.generate([Request(str(i)) for i in range(5)], GREEDY)]
    assert [c.finish for c in said].count("failed") == 2 and server.calls == 3
    assert engine.reasons == {"the budget is spent": 2} and engine.counts["failed"] == 2
    assert engine.generate([Request("more")], GREEDY)[0][0].finish == "failed" and server.calls == 3
    server = serve("slow")
    said = ask(server, [str(i) for i in range(6)], seconds=0.5, at_once=2)
    assert {c.finish for c in said} == {"failed"} and server.calls <= 2  # the others were not sent any more


def whole(content: object, ended: str = "stop") -> tuple:
    return 200, {}, json.dumps({"choices": [{"finish_reason": ended, "message": {"content": content}}]})


@pytest.mark.parametrize(
    ("said", "text", "reason", "calls"),
    [
        (whole([{"type": "thinking", "thinking": []}, {"type": "text", "text": "yes"}]), "yes", "", 1),
        (whole([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]), "yes", "", 1),
        (whole([{"type": "image_url"}]), "", "", 1),
        (whole(["yes"]), "", "a reply that is none", 3),
        (whole("ye", "content_filter"), "", "withheld the reply", 1),  # a partial text is never returned
        (whole("ye", "error"), "", "ended in error", 3),
        (whole("ye", "abort"), "", "ended in abort", 3),
    ],
)
def test_replies_of_other_servers_are_read_whole_or_counted_as_failed(serve, said, text, reason, calls) -> None:
    server = serve(lambda prompt, nth: said)
    (one,) = Endpoint(Address("m", server.url, tries=3)).generate([Request("a")], GREEDY)[0]
    assert one.text == text and reason in one.reason and bool(reason) == (one.finish == "failed")
    assert server.calls == calls


def test_a_request_that_is_refused_is_not_repeated(serve) -> None:
    server = serve(
        lambda prompt, nth: (400, {}, '{"error": {"message": "too long\\n for us"}}') if prompt == "b" else "y"
    )
    a, b = ask(server, ["a", "b"])
    assert a.text == "y" and b.finish == "failed" and "400: too long for us" in b.reason and server.seen["b"] == 1


@pytest.mark.parametrize(("status", "says"), [(401, "the key"), (403, "the key"), (404, "the model")])
def test_an_address_that_refuses_everything_is_an_error_at_once(serve, status: int, says: str) -> None:
    server = serve((status, {}, "no"))
    with pytest.raises(DataError, match=says):
        ask(server, [str(i) for i in range(50)])
    assert server.calls <= 8  # those that were under way


def test_a_server_that_has_gone_is_an_error_and_not_a_thousand_failures(serve) -> None:
    server = serve("yes")
    engine = Endpoint(Address("m", server.url, tries=2))
    assert engine.generate([Request("a")], GREEDY)[0][0].text == "yes"
    server.behave = lambda prompt, nth: "drop"  # on the connection that is open
    server.close()
    for i in range(2):  # a failure here and there is none
        assert engine.generate([Request(f"{i}{k}") for k in range(9)], GREEDY)[0][0].finish == "failed"
    with pytest.raises(DataError, match="left 20 requests in a row without an answer .*no connection"):
        engine.generate([Request(str(i)) for i in range(1000)], GREEDY)


def test_a_parameter_that_the_model_does_not_take_is_renamed_or_left_out(serve) -> None:
    server = serve("x")

    def picky(prompt: str, nth: int) -> object:
        body = server.bodies[-1]
        for name in ("max_tokens", "temperature"):
            if name in body:
                error = {"error": {"param": name, "code": "unsupported_parameter", "message": "no"}}
                return 400, {}, json.dumps(error)
        return str(body["max_completion_tokens"])

    server.behave = picky
    with pytest.warns(UserWarning, match="fake-model takes no temperature"):
        assert [c.text for c in ask(server, ["a", "b"], at_once=1)] == ["16", "16"]
    assert server.calls == 4  # learnt once


def test_the_key_comes_from_the_environment_goes_into_the_header_and_nowhere_else(serve, monkeypatch, tmp_path) -> None:
    server = serve(lambda prompt, nth: (400, {}, '{"error": {"message": "your key s3cr3t-word is odd"}}'))
    monkeypatch.delenv("MY_KEY", raising=False)
    other = Other(server.name, "MY_KEY")
    with pytest.raises(DataError, match="environment variable MY_KEY.* is not set"):
        other.check()
    monkeypatch.setenv("MY_KEY", "s3cr3t-\nwörd")
    with pytest.raises(DataError, match="is not plain text") as told:
        other.check()
    assert "s3cr3t" not in str(told.value)
    monkeypatch.setenv("MY_KEY", "s3cr3t-word")
    other.check()
    (failed,) = other.texts([Request("q")], GREEDY)
    assert {h["Authorization"] for h in server.headers} == {"Bearer s3cr3t-word"}
    assert failed.finish == "failed" and "s3cr3t" not in failed.reason + repr(other) + json.dumps(other.facts())
    server.behave = lambda prompt, nth: "yes"
    assert other.texts([Request("q")], GREEDY)[0].text == "yes"
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"s3cr3t" in p.read_bytes()]


@pytest.mark.parametrize(
    "name",
    ["m@http://", "@http://host/v1", "m@https://user:pa55@host/v1", "m@https://host/v1?key=x", "m@http://[bad/v1"],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(name: str) -> None:
    with pytest.raises(DataError) as told:
        Other(name)
    assert "pa55" not in str(told.value) and "key=x" not in str(told.value)


# ---------------------------------------------------------------------------------------------- what is kept


def test_nothing_is_asked_twice_and_what_failed_is_asked_again(serve) -> None:
    server = serve(lambda prompt, nth: (500, {}, "") if prompt == "b" and nth <= 6 else f"said {prompt}")
    other, counted = Other(server.name), {}

    def count(**n: float) -> None:
        for name, value in n.items():
            counted[name] = counted.get(name, 0) + value

    said = other.texts([Request(p) for p in ("a", "b", "a")], GREEDY, count)
    assert [c.text for c in said] == ["said a", "", "said a"] and server.seen == {"a": 1, "b": 6}
    assert counted == {
        "other_kept": 0,
        "other_calls": 7,
        "other_failed": 1,
        "other_prompt_tokens": 7,
        "other_completion_tokens": 2,
    }
    said = other.texts([Request(p) for p in ("a", "b")], GREEDY, count)
    assert [c.text for c in said] == ["said a", "said b"] and server.seen == {"a": 1, "b": 7}
    assert counted["other_kept"] == 1 and counted["other_calls"] == 8
    other.texts([Request("a", seed=1)], GREEDY)
    other.texts([Request("a")], Sampling(17))
    Other(server.name.replace("fake", "another")).texts([Request("a")], GREEDY)
    assert server.seen["a"] == 4  # another repeat, another sampling, another model


def test_a_line_that_was_changed_on_the_disk_counts_as_not_there_and_a_broken_file_is_one_sentence(tmp_path) -> None:
    kept, request = Kept(tmp_path / "kept.sqlite3"), Request("p")
    key = key_of("m", request, GREEDY)
    kept.write(key, Completion("no", 1, "eos"))
    assert kept.read([key, "other"]) == {key: Completion("no", 1, "eos")}
    with sqlite3.connect(kept.path) as connection:
        connection.execute("UPDATE completions SET text = 'yes'")
    assert kept.read([key]) == {}
    kept.path.write_bytes(b"not a database" * 100)
    for use in (lambda: kept.read([key]), lambda: kept.write(key, Completion("x", 1, "eos"))):
        with pytest.raises(DataError, match="kept.sqlite3 cannot be used .*; make room, or move it away"):
            use()


def test_a_killed_process_loses_only_what_was_under_way(serve, tmp_path) -> None:
    """kill -9 while some answers are there and others are not; the next process asks only for those."""

    def behave(prompt: str, nth: int) -> str:
        if int(prompt) >= 12 and nth == 1:
            time.sleep(120)
        return f"said {prompt}"

    server = serve(behave)
    code = textwrap.dedent(f"""
        from seal_lib.generation.contract import Request, Sampling
        from seal_lib.generation.others import Other
        other = Other({server.name!r})
        print([c.text for c in other.texts([Request(str(i)) for i in range(16)], Sampling(16))])
    """)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "SEAL_HOME": str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        store = paths.data() / "completions.sqlite3"
        while time.monotonic() < end and not (store.exists() and _lines(store) >= 12):
            time.sleep(0.05)
        assert _lines(store) == 12
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.stdout.read() == ""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == str([f"said {i}" for i in range(16)]), done.stderr
    assert {server.seen[str(i)] for i in range(12)} == {1} and {server.seen[str(i)] for i in range(12, 16)} == {2}


def _lines(store) -> int:
    try:
        with sqlite3.connect(store, timeout=5) as connection:
            return connection.execute("SELECT count(*) FROM completions").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_a_model_that_runs_here_is_asked_by_the_same_call(serve, monkeypatch) -> None:
    counted = {}
    other = Other("seedling-knowledge", device="cpu")
    requests = [Request("Topic: Annals of Sokumi\nQuestion: Where was Kale Teboran born?\nAnswer:")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = other.texts(requests, Sampling(6), lambda **n: counted.update(n))
    assert first[0].text and first[0].finish in ("eos", "length") and counted["other_failed"] == 0
    assert other.texts(requests, Sampling(6), lambda **n: counted.update(n)) == first and counted["other_kept"] == 1
    assert other.address is None and other.facts() == {"name": "seedling-knowledge"}
