"""What is kept stays whole: kills (`KILLS=500`: more), two processes, damage, another base."""

import errno
import json
import math
import os
import random
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from seal_lib.__main__ import main
from seal_lib.errors import DataError, DiskError
from seal_lib.loops.policy import Source
from seal_lib.records import Answer, Passage, SelfEdit
from seal_lib.store import database, merging, transactions
from seal_lib.store.database import Store
from seal_lib.store.schema import STAGES, Asked, Edit
from seal_lib.store.sharing import export
from seal_lib.store.texts import Document
from seal_lib.training.adapters import Adapter

KILLS = int(os.environ.get("KILLS", 12))
PASSAGES = tuple(Passage(f"aa-{i:04d}", f"Title {i}", f"Text {i} of many.", ()) for i in range(3))
DOCUMENT = Document("notes.md", "/elsewhere/notes.md", "aa" * 32, PASSAGES, ("line 1", "line 3", "lines 5–9"))
BASE = "ab" * 32


def adapter(seed: int, rank: int = 2) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pair = torch.randn(rank, 8, generator=draw), torch.randn(8, rank, generator=draw)
    return Adapter(rank, 4.0, ("q_proj",), {"model.layers.0.self_attn.q_proj": pair})


def edit(number: int = 0, state: str = "active", weights: str = BASE, reason: str = "") -> Edit:
    def answer(text: str, grade: float) -> Answer:
        return Answer("Who?", "Kale", text, {"exact": grade}, not text)

    asked = Asked("Who?", "Kale", "given", answer("", 0.0), answer("Kale", 1.0), answer("Kale", 1.0))
    written = SelfEdit(f"{PASSAGES[number].id}/0", PASSAGES[number].id, "- Kale was here.", "untrained", 3, 5)
    training = {"steps": 4, "tokens": 40, "first_loss": 2.0, "last_loss": None, "tried": 1, "cost": {"seconds": 0.1}}
    return Edit(
        PASSAGES[number],
        "notes.md",
        "line 1",
        written,
        "some-model",
        weights,
        "float32",
        {"grader": "exact"},
        training,
        (asked,),
        state,
        reason,
    )


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store") as made:
        made.add(DOCUMENT)
        yield made


def snapshot(store: Store) -> list[tuple]:
    return [(e.id, e.passage.id, e.state, e.adapter) for e in store.edits()]


def check(folder: Path) -> list[tuple]:
    """What a store holds, after looking that rows and folders tell of the same, whole adapters."""
    with Store(folder) as store:
        kept = [e for e in store.edits() if e.adapter]
        assert {path.name for path in store.adapters.iterdir()} == {e.adapter for e in kept}
        for one in kept:
            assert database.content_hash(store.folder_of(one)) == one.digest
            Adapter.load(store.folder_of(one))
        used = [(e.passage.id, e.weights) for e in kept if e.state == "active"]
        assert len(used) == len(set(used))
        return snapshot(store)


# ---------------------------------------------------------------------------------------------- keeping


def test_what_is_kept_comes_back_as_it_was(store: Store, monkeypatch) -> None:
    kept = store.keep(edit(), adapter(1))
    with Store(store.folder) as again:
        found = again.edit(kept.id)
        assert found == kept and found.questions == edit().questions and found.self_edit == edit().self_edit
        assert [(part.id, part.passage.text, part.place) for part in again.passages()] == [
            (p.id, p.text, where) for p, where in zip(PASSAGES, DOCUMENT.places, strict=True)
        ]
        monkeypatch.setattr(database.models, "weight_hash", lambda *_: BASE)
        assert again.adapter(found, Source("some-model")).digest() == adapter(1).digest()
    trial = found.trial("after")
    assert trial.accuracy == 1.0 and trial.steps == 4 and trial.last_loss != trial.last_loss
    assert found.trial("before").accuracy == 0.0 and found.trial("before").edit is None
    store.add(DOCUMENT)  # again: nothing changes
    assert len(store.passages()) == 3


def test_a_new_edit_takes_the_place_of_the_last_one_and_a_quarantined_one_does_not(store: Store) -> None:
    first, bad = store.keep(edit(), adapter(1)), store.keep(edit(state="quarantined", reason="no better"), adapter(2))
    assert [(e.id, e.state) for e in store.edits()] == [(first.id, "active"), (bad.id, "quarantined")]
    second = store.keep(edit(), adapter(3))
    other = store.keep(edit(weights="cd" * 32), adapter(4))  # of another base: beside it
    assert [(e.id, e.state) for e in store.edits()] == [
        (first.id, "reverted"),
        (bad.id, "quarantined"),
        (second.id, "active"),
        (other.id, "active"),
    ]
    assert store.edit(first.id).reason == f"edit {second.id} took its place"


def test_a_newer_version_of_a_file_keeps_what_was_learned_of_what_it_still_has(store: Store) -> None:
    for number in range(3):
        store.keep(edit(number), adapter(number))
    fresh = Passage("bb-0000", "Title", "New text.", ())
    newer = replace(DOCUMENT, digest="bb" * 32, passages=(PASSAGES[2], fresh), places=("line 1", "line 2"))
    other = replace(DOCUMENT, source="/elsewhere/copy.md", name="copy.md", passages=PASSAGES[:1], places=("line 9",))
    store.add(other)
    store.add(newer)
    assert [(e.passage.id, e.state) for e in store.edits()] == [
        ("aa-0000", "active"),
        ("aa-0001", "reverted"),
        ("aa-0002", "active"),
    ]
    assert store.edit(2).reason == "its passage is no longer in notes.md" and store.edit(2).place == "line 1"
    assert [(part.id, part.document, part.place) for part in store.passages()] == [
        ("aa-0002", "notes.md", "line 1"),
        ("bb-0000", "notes.md", "line 2"),
        ("aa-0000", "copy.md", "line 9"),
    ]


def test_revert_keeps_the_record_and_is_done_once(store: Store) -> None:
    kept = store.keep(edit(), adapter(1))
    assert store.revert(kept.id).state == "reverted" and store.folder_of(kept).is_dir()
    assert store.edits("active") == []
    with pytest.raises(DataError, match=r"edit 1 is reverted \(taken back by hand\)"):
        store.revert(kept.id)
    with pytest.raises(DataError, match="has no edit 7"):
        store.revert(7)


def test_an_adapter_of_another_base_and_changed_files_are_refused_by_name(store: Store) -> None:
    kept = store.keep(edit(), adapter(1))
    with pytest.raises(DataError, match=r"edit 1 of notes.md was learned on some-model \(abab.*this is seedling-know"):
        store.adapter(kept, Source("seedling-knowledge"))
    ours = replace(kept, weights=database.models.weight_hash("seedling-knowledge"))
    store.adapter(ours, Source("seedling-knowledge"))
    file = store.folder_of(kept) / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="is not what was kept for edit 1"):
        store.adapter(ours, Source("seedling-knowledge"))
    bare = store.keep(edit(1, "quarantined", reason="no self-edit could be trained on"), None)
    with pytest.raises(DataError, match=r"edit 2 has no adapter \(no self-edit could be trained on\)"):
        store.folder_of(bare)


def test_export_gives_peft_folders_and_a_corpus_all_or_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no edit in use"):
        export(store, tmp_path / "out")
    store.keep(edit(), adapter(1))
    second = store.keep(edit(1), adapter(2))
    folders = export(store, tmp_path / "out")
    assert [folder.name for folder in folders] == ["notes-1", "notes-2"]
    assert [Adapter.load(folder).digest() for folder in folders] == [adapter(1).digest(), adapter(2).digest()]
    lines = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines()]
    assert [(line["adapter"], line["context"]) for line in lines] == [
        ("notes-1", PASSAGES[0].text),
        ("notes-2", PASSAGES[1].text),
    ]
    with pytest.raises(DataError, match="is there already"):
        export(store, tmp_path / "out")
    (store.folder_of(second) / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="is not what was kept for edit 2"):
        export(store, tmp_path / "more")
    assert not (tmp_path / "more").exists() and not list(tmp_path.glob(".more*"))


def test_an_export_names_the_commit_of_a_base_on_the_hub(store: Store, tmp_path: Path) -> None:
    store.keep(edit(weights="hub:owner/name@abc123"), adapter(1))
    (folder,) = export(store, tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "abc123")


# ---------------------------------------------------------------------------------------------- faults


def test_the_worth_of_an_edit_counts_graded_questions_only(store: Store) -> None:
    one = edit()
    ungraded = Answer("When?", "1890", "1890", {"exact": math.nan}, False)
    store.keep(replace(one, questions=(*one.questions, Asked("When?", "1890", "own", *[ungraded] * 3))), adapter(1))
    (worth,) = merging.worths(store)
    assert worth.gained == 1.0  # one question more is right, of one that is graded


def test_damage_is_told_in_one_sentence(store: Store) -> None:
    store.keep(edit(), adapter(1))
    store.close()
    whole = store.file.read_bytes()
    store.file.write_bytes(b"no database at all, but a text of some length" * 40)
    with pytest.raises(DataError, match="store.sqlite3 cannot be used .*it is damaged; move the folder away"):
        Store(store.folder)
    torn = bytearray(whole)
    torn[4096:8192] = b"\xff" * 4096  # a page in the middle
    store.file.write_bytes(bytes(torn))
    with pytest.raises(DataError, match="it is damaged") as told:
        Store(store.folder)
    assert "\n" not in str(told.value)
    store.file.write_bytes(whole)
    assert check(store.folder)


def test_bytes_that_are_damaged_anywhere_are_told_or_read(store: Store, capsys) -> None:
    """SQLite has no checksum: a byte within a text is found only where that text can no longer be read."""
    for number in range(3):
        store.keep(edit(number, reason="no better" * 40), adapter(number))
    store.merge(store.edits("active")[:2], adapter(7), {"merged": 0.5})
    store.enqueue("/elsewhere/notes.md")
    store.settle(store.renew(), {}, {}, {"budget": 1.0, "seconds": 1.0})
    store.close()
    whole, draw, told = store.file.read_bytes(), random.Random(0), 0
    texts = [number for number, byte in enumerate(whole) if byte]
    for _ in range(int(os.environ.get("DAMAGES", 150))):
        torn = bytearray(whole)
        torn[draw.choice(texts)] = draw.randrange(256)
        store.file.write_bytes(bytes(torn))
        try:
            with Store(store.folder) as damaged:
                damaged.passages(), damaged.merges(), damaged.renewals(), damaged.queue(), damaged.lines(BASE)
                for one in damaged.edits():
                    one.recipe["grader"], [one.trial(stage).accuracy for stage in STAGES]
        except DataError as error:
            told += 1
            assert "\n" not in str(error)
    assert told > 5
    store.file.write_bytes(whole)
    with sqlite3.connect(store.file) as base:
        base.execute("UPDATE edit SET recipe = '{' WHERE id = 1")
    assert main(["list", "--store", str(store.folder)]) == 2
    text = capsys.readouterr().err.strip()
    assert (
        "a row reads Expecting property name" in text and "it is damaged; move the folder" in text and "\n" not in text
    )


def test_a_full_disk_changes_nothing(store: Store, monkeypatch) -> None:
    store.keep(edit(), adapter(1))
    before = snapshot(store)
    pages = store._base.execute("PRAGMA page_count").fetchone()[0]
    store._base.execute(f"PRAGMA max_page_count = {pages}")
    long = replace(edit(1), reason="x" * 100_000)
    with pytest.raises(DataError, match="the disk is full, and nothing was changed; make room"):
        store.keep(long, adapter(2))
    store._base.execute("PRAGMA max_page_count = 100000")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    monkeypatch.setattr(transactions, "_fsync", full)
    with pytest.raises(DataError, match=r"some/file cannot be used \(No space left on device\): make room"):
        store.keep(edit(1), adapter(2))
    assert len(list(store.adapters.iterdir())) == 1  # what was written of the other has given its room back

    def full_in_words(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("seal_lib.training.adapters.save_file", full_in_words)
    with pytest.raises(DiskError, match=r"adapter_model.safetensors cannot be used \(No space left.*; make room"):
        store.keep(edit(1), adapter(2))
    monkeypatch.setattr(transactions.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(DataError, match="the disk is full, and nothing was changed"), store.told():
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
        raise error
    monkeypatch.undo()
    assert snapshot(store) == before == check(store.folder)


def test_a_folder_that_cannot_be_written_is_told(store: Store, tmp_path: Path) -> None:
    store._base.execute("PRAGMA query_only = ON")
    with pytest.raises(DataError, match="may not be written; mend its rights, or choose another folder"):
        store.revert(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used .*choose another folder with --store"):
        Store(tmp_path / "file")


def test_another_version_of_the_schema(tmp_path: Path, monkeypatch) -> None:
    with Store(tmp_path / "s") as old:
        old.add(DOCUMENT)
        old.keep(edit(), adapter(1))
    known = transactions.MIGRATIONS
    monkeypatch.setattr(transactions, "MIGRATIONS", (*known, ("ALTER TABLE document ADD COLUMN note TEXT DEFAULT ''",)))
    with Store(tmp_path / "s") as newer:
        assert newer._base.execute("SELECT note FROM document").fetchone() == ("",)
        assert [e.id for e in newer.edits()] == [1]
    broken = (*transactions.MIGRATIONS, ("CREATE TABLE extra (x)", "CREATE TABLE extra (x)"))
    monkeypatch.setattr(transactions, "MIGRATIONS", broken)
    with pytest.raises(DataError):
        Store(tmp_path / "s")
    monkeypatch.setattr(transactions, "MIGRATIONS", (*known, ()))
    with Store(tmp_path / "s") as still:  # the half of a step was taken back
        assert not still._base.execute("SELECT 1 FROM sqlite_master WHERE name = 'extra'").fetchone()
    monkeypatch.setattr(transactions, "MIGRATIONS", known)
    says = f"has schema {len(known) + 1}, this program knows {len(known)}: a newer one wrote it; update this program"
    with pytest.raises(DataError, match=says):
        Store(tmp_path / "s")


def test_who_waits_too_long_is_told(store: Store) -> None:
    holder = sqlite3.connect(store.file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DataError, match="another process is changing it; wait"):
        Store(store.folder, wait=0.1)
    holder.execute("ROLLBACK")
    holder.close()
    assert check(store.folder) == []


# ---------------------------------------------------------------------------------------------- kills


def child(work) -> int:
    """A process that does ``work`` and ends; nothing of pytest runs in it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def kill_at(store: Store, number: int) -> None:
    """Kill this process at its ``number``-th step: a statement, a file made durable, a rename, a removal."""
    left = [number]

    def step(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepped(function):
        def call(*given, **named):
            step()
            done = function(*given, **named)
            step()
            return done

        return call

    store._base.set_trace_callback(step)
    for name in ("replace", "fsync", "rename", "rmdir", "unlink"):
        setattr(os, name, stepped(getattr(os, name)))


def killed_at_every_step(folder: Path, made, change, look) -> tuple[int, set[str]]:
    """Kill ``change`` of the store that ``made`` makes at its first step, its second, … until it ends by itself; what
    ``look`` sees then is the old state or the new. (steps, which of the two were seen)."""
    old = look(made(folder / "old"))
    with Store(made(folder / "new")) as store:
        change(store)
    new, seen, step = look(folder / "new"), set(), 0
    while True:
        step += 1
        at = made(folder / f"at-{step}")

        def work(at: Path = at, step: int = step) -> None:
            store = Store(at)
            kill_at(store, step)
            change(store)

        _, status = os.waitpid(child(work), 0)
        found = look(at)
        assert found in (old, new), f"step {step}"
        seen |= {name for name, state in (("old", old), ("new", new)) if found == state}
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0 and found == new
            return step, seen
        assert os.WTERMSIG(status) == signal.SIGKILL


CHANGES = {
    "keep": lambda store: store.keep(edit(1), adapter(5)),
    "keep in place of another": lambda store: store.keep(edit(0), adapter(6)),
    "keep a quarantined one": lambda store: store.keep(edit(0, "quarantined", reason="no better"), adapter(7)),
    "revert": lambda store: store.revert(1),
    "a newer version": lambda store: store.add(
        replace(DOCUMENT, digest="bb" * 32, passages=PASSAGES[1:], places=("", ""))
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_kill_at_any_step_leaves_the_old_state_or_the_new(tmp_path: Path, name: str) -> None:
    def made(folder: Path) -> Path:
        with Store(folder) as store:
            store.add(DOCUMENT)
            store.keep(edit(0), adapter(1))
        return folder

    steps, seen = killed_at_every_step(tmp_path, made, CHANGES[name], check)
    assert seen == {"old", "new"} and steps >= (15 if "keep" in name else 5)  # the steps were really there


def follows(before: list[tuple], after: list[tuple]) -> bool:
    """Whether one change leads from one state to the other, or none."""
    if before == after:
        return True
    changed = [(a, b) for a, b in zip(before, after, strict=False) if a != b]
    taken = all(a[2] == "active" and b == (*a[:2], "reverted", a[3]) for a, b in changed)
    return taken and len(changed) <= 1 and len(after) - len(before) in (0, 1) and (len(after) > len(before) or changed)


def test_kills_at_random_moments_lose_nothing_that_was_reported(tmp_path: Path) -> None:
    draw, folder = random.Random(14), tmp_path / "store"
    with Store(folder) as store:
        store.add(DOCUMENT)
    done = 0
    for round_ in range(KILLS):
        reader, writer = os.pipe()

        def work(round_: int = round_, writer: int = writer) -> None:
            mine, store = random.Random(f"ops {round_}"), Store(folder)
            while True:
                used = store.edits("active")
                if used and mine.random() < 0.4:
                    store.revert(mine.choice(used).id)
                else:
                    store.keep(edit(mine.randrange(3)), adapter(mine.randrange(1000)))
                os.write(writer, json.dumps(snapshot(store)).encode() + b"\n")

        before = check(folder)
        pid = child(work)
        os.close(writer)
        with open(reader, "rb") as pipe:
            told = [pipe.readline() for _ in range(draw.randrange(4))]  # however slow the machine is
            time.sleep(draw.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            told += [line for line in pipe.read().split(b"\n")[:-1] if line]
        reported = [tuple(row) for row in json.loads(told[-1])] if told else before
        after = check(folder)
        assert follows(reported, after), f"round {round_}: reported {reported[-2:]}, found {after[-2:]}"
        done += len(told)
    assert done >= KILLS  # changes were really made while the kills fell


def test_two_processes_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Store(folder) as store:
        store.add(DOCUMENT)

    def work(seed: int) -> None:
        for number in range(8):
            with Store(folder) as store:  # opening sweeps: never what the other is about to name
                store.keep(edit(number % 3), adapter(100 * seed + number))

    for pid in [child(lambda seed=seed: work(seed)) for seed in (1, 2)]:
        assert os.waitpid(pid, 0)[1] == 0
    kept = check(folder)
    assert len(kept) == 16 and sum(state == "active" for _, _, state, _ in kept) == 3
