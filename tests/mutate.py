"""Do the tests bite? Changes one token of the library at a time and runs the tests of that module against it.

    make mutate ARGS="--count 80 --seed 0 --only loops,report/stats"

The checkout is never touched: mutants live in copies of it. A mutant is *killed* when a test fails or does not end in
time, and *survives* when all pass. `mutation.yaml` says which tests belong to a module, and lists survivors that are
no fault, with the reason. Results are kept in runs/mutation/ and used again while the module and its tests stay as
they are. Numbers that are settings (defaults of parameters, constants of modules and classes) are left alone unless
`--settings` is given: another value of them is another choice, not a fault. Needs a system that can fork.

An own script and not mutmut or cosmic-ray: both were made for a whole suite per mutant; neither takes the tests by
module, a sample by seed that stays when other code changes, or a process that has torch imported already.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from importlib.util import cache_from_source
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/mutation.yaml"
NOT_HERE = "not slow and not gpu and not vllm and not notebook"  # marks of tests that a mutant does not meet
MEMORY = 12 << 30  # bytes of address space of one mutant
SLOWER = 4  # a mutant may take this many times as long as its tests, and `--patience` more

#: token -> what may stand in its place: the boundary, and the other way round
SWAPS = {
    ast.Lt: ("<", ["<=", ">="]),
    ast.LtE: ("<=", ["<", ">"]),
    ast.Gt: (">", [">=", "<="]),
    ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: ("is not", ["is"]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: ("not in", ["in"]),
    ast.And: ("and", ["or"]),
    ast.Or: ("or", ["and"]),
    ast.Add: ("+", ["-"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["/"]),
    ast.Div: ("/", ["*"]),
    ast.FloorDiv: ("//", ["*"]),
    ast.Mod: ("%", ["//"]),
    ast.Pow: ("**", ["*"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
    ast.LShift: ("<<", [">>"]),
    ast.RShift: (">>", ["<<"]),
}
PAIRS = [
    ("min", "max"),
    ("minimum", "maximum"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("clamp_min", "clamp_max"),
    ("clamp_min_", "clamp_max_"),
    ("any", "all"),
    (".sum", ".mean"),
    ("floor", "ceil"),
]
CALLS = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
TEXTS = (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.ListComp)  # their sums have no difference: nothing to learn


@dataclass(frozen=True)
class Mutant:
    """One change: ``old`` and ``new`` are the lines it touches, without indentation; they name it if lines move."""

    file: str
    line: int
    kind: str
    old: str
    new: str
    start: int
    end: int
    text: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.old, self.new


class Finder(ast.NodeVisitor):
    """(kind, first byte, last byte, text) of every change to a source; annotations and error texts stay."""

    def __init__(self, source: bytes):
        lines = source.splitlines(keepends=True)
        self.source, self.starts = source, [sum(map(len, lines[:n])) for n in range(len(lines))]
        self.found: list[tuple[str, int, int, str]] = []
        self.inside, self.kind = 0, ""  # functions around a node; the kind of all changes below it
        self.visit(ast.parse(source))

    def at(self, node: ast.AST, end: bool = False) -> int:
        return self.starts[(node.end_lineno if end else node.lineno) - 1] + (
            node.end_col_offset if end else node.col_offset
        )

    def add(self, kind: str, start: int, end: int, text: str) -> None:
        setting = not self.inside or self.kind == "setting"
        self.found.append(("setting" if setting else self.kind or kind, start, end, text))

    def operator(self, kind: str, operator: ast.AST, left: ast.AST, right: ast.AST) -> None:
        """The token between two operands."""
        start, end = self.at(left, end=True), self.at(right)
        old, news = SWAPS.get(type(operator), ("", []))
        gap = self.source[start:end].decode()
        if old and "#" not in gap:
            first = start + len(gap[: gap.index(old)].encode())
            for new in news:
                self.add(kind, first, first + len(old), new)

    def under(self, kind: str, *nodes: ast.AST | None) -> None:
        kept, self.kind = self.kind, self.kind or kind
        for node in nodes:
            if node is not None:
                self.visit(node)
        self.kind = kept

    def visit_Raise(self, node: ast.AST) -> None:
        pass

    visit_JoinedStr = visit_Raise  # its parts have no places before Python 3.12

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.under("", node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        self.under("setting", *node.defaults, *node.kw_defaults)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        self.inside += 1
        first = node.body[ast.get_docstring(node, clean=False) is not None :][:1]
        dots = first and isinstance(getattr(first[0], "value", 0), ast.Constant)
        if first and not dots and not _gives(node) and not isinstance(first[0], ast.Raise | ast.Pass | ast.Return):
            self.add("early return", self.at(first[0]), self.at(first[0], end=True), "return")
        for line in node.body:
            self.visit(line)
        self.inside -= 1

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self.inside += 1
        self.visit(node.body)
        self.inside -= 1

    def visit_If(self, node: ast.If | ast.While | ast.IfExp) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node.test, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
            self.add("condition", self.at(node.test), self.at(node.test), "not ")
        self.generic_visit(node)

    visit_While = visit_IfExp = visit_If

    def visit_Compare(self, node: ast.Compare) -> None:
        for operator, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False):
            self.operator("comparison", operator, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.operator("boolean", node.op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(isinstance(x, TEXTS) or isinstance(getattr(x, "value", 0), str) for x in (node.left, node.right))
        if not text:
            self.operator("arithmetic", node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.value, TEXTS):
            self.operator("arithmetic", node.op, node.target, node.value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            kind = "not" if isinstance(node.op, ast.Not) else "sign"
            self.add(
                kind,
                self.at(node),
                self.at(node.operand),
                "(" * self.source[self.at(node) : self.at(node.operand)].count(b"("),
            )
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add("constant", self.at(node), self.at(node, end=True), str(not node.value))
        elif isinstance(node.value, int | float):
            for other in (node.value + 1, node.value - 1):
                self.add("constant", self.at(node), self.at(node, end=True), repr(other))

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # zip's own check of what holds
            self.under("axis" if node.arg in ("axis", "dim") else "", node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if other := CALLS.get(name) or isinstance(node.func, ast.Attribute) and CALLS.get(f".{name}", "")[1:]:
            end = self.at(node.func, end=True)
            self.add("swapped call", end - len(name), end, other)
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break | ast.Continue) -> None:
        self.add("jump", self.at(node), self.at(node, end=True), "continue" if isinstance(node, ast.Break) else "break")

    visit_Continue = visit_Break


def _gives(function: ast.AST) -> bool:
    """Whether a function gives something, its inner functions apart."""
    inner = (ast.FunctionDef, ast.Lambda, ast.ClassDef)
    return any(
        isinstance(node, ast.Yield | ast.YieldFrom)
        or isinstance(node, ast.Return)
        and node.value is not None
        or not isinstance(node, inner)
        and _gives(node)
        for node in ast.iter_child_nodes(function)
    )


def changed(source: bytes, mutant: Mutant) -> bytes:
    return source[: mutant.start] + mutant.text.encode() + source[mutant.end :]


def mutants(root: Path, file: str, settings: bool = False) -> list[Mutant]:
    """Every mutant of a file."""
    source, found = (root / file).read_bytes(), {}
    for kind, start, end, text in Finder(source).found:
        if kind == "setting" and not settings:
            continue
        first, last = source.rfind(b"\n", 0, start) + 1, source.find(b"\n", end)
        after = source[:start] + text.encode() + source[end:]
        old, new = source[first:last].decode(), after[first : last + len(after) - len(source)].decode()
        old, new = (" ".join(part.split()) for part in (old, new))
        mutant = Mutant(file, source.count(b"\n", 0, start) + 1, kind, old, new, start, end, text)
        found.setdefault((mutant.key, mutant.line), mutant)
    return list(found.values())


def chosen(root: Path, table: dict, only: Sequence[str], count: int, seed: int, settings: bool) -> list[Mutant]:
    """`count` mutants (0: all) of the modules in the table; by a hash of each, so that other code changes no draw."""
    files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.py"))]
    files = [file for file in files if any(fnmatch(file, pattern) for pattern in table["tests"])]
    files = [file for file in files if not only or any(part in file for part in only)]
    every = [mutant for file in files for mutant in mutants(root, file, settings)]
    every.sort(key=lambda m: hashlib.sha256(repr((seed, m.key)).encode()).digest())
    good = (mutant for mutant in every if is_python(changed((root / mutant.file).read_bytes(), mutant)))
    return list(islice(good, count or None))


def is_python(source: bytes) -> bool:
    try:
        return bool(compile(source, "mutant", "exec"))
    except SyntaxError:
        return False


def tests_of(table: dict, file: str) -> tuple[str, ...]:
    return tuple(next(tests for pattern, tests in table["tests"].items() if fnmatch(file, pattern)))


def child(folder: Path, tests: Sequence[str], log: Path) -> None:
    """Run the tests in the copy; never returns."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for handle in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    os.chdir(folder)
    scratch = folder.with_name(folder.name + "-tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    os.environ |= {"PYTHONPATH": str(folder), "TMPDIR": str(scratch)}
    tempfile.tempdir = None
    sys.path[0] = str(folder)  # instead of this script's
    sys.argv = ["pytest"]
    import pytest

    code = pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-m", NOT_HERE, f"--basetemp={scratch}/pytest"])
    sys.stdout.flush()
    os._exit(int(code))


def run_all(
    root: Path, work: Path, todo: Sequence[tuple[Mutant | None, tuple[str, ...], float]], jobs: int
) -> Iterator[tuple[Mutant | None, tuple[str, ...], str, float, str]]:
    """(mutant or None for the tests as they are, tests, seconds allowed) → and outcome, seconds, what failed."""
    free, running, waiting = [], {}, list(todo)
    for n in range(min(jobs, len(waiting))):
        copy(root, work / f"copy{n}")
        free.append(work / f"copy{n}")
    while waiting or running:
        while waiting and free:
            mutant, tests, limit = waiting.pop(0)
            folder = free.pop()
            if mutant:
                write(folder / mutant.file, changed((root / mutant.file).read_bytes(), mutant))
            sys.stdout.flush()
            if not (number := os.fork()):
                child(folder, tests, folder.with_suffix(".log"))
            running[number] = mutant, tests, limit, folder, time.monotonic()
        time.sleep(0.02)
        for number, (mutant, tests, limit, folder, start) in list(running.items()):
            seconds = time.monotonic() - start
            late = seconds > limit
            if late:
                os.killpg(number, signal.SIGKILL)
            ended, status = os.waitpid(number, 0 if late else os.WNOHANG)
            if not ended:
                continue
            del running[number]
            if mutant:
                write(folder / mutant.file, (root / mutant.file).read_bytes())
            free.append(folder)
            said = folder.with_suffix(".log").read_text(errors="replace").splitlines()
            failed = next((line for line in said if line.startswith(("FAILED", "ERROR"))), said[-1] if said else "")
            code = os.waitstatus_to_exitcode(status)
            outcome = "timed out" if late else "survived" if code == 0 else "no tests" if code in (4, 5) else "killed"
            yield mutant, tests, outcome, seconds, "" if outcome == "survived" else failed[:300]


def copy(root: Path, folder: Path) -> None:
    """The files of the checkout as they are now, without what git ignores."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)


def write(path: Path, source: bytes) -> None:
    path.write_bytes(source)
    Path(cache_from_source(str(path))).unlink(missing_ok=True)  # it is told by second and size: a mutant may have both


def digest(root: Path, *files: str) -> str:
    return hashlib.sha256(b"\0".join((root / file).read_bytes() for file in files)).hexdigest()[:16]


def report(lines: Sequence[dict], listed: dict[tuple, str], command: str) -> str:
    """Markdown: the share killed, by package, and every survivor."""
    from scipy.stats import binomtest

    def share(part: Sequence[dict]) -> str:
        real = [x for x in part if not (x["outcome"] == "survived" and key_of(x) in listed)]
        killed = sum(x["outcome"] != "survived" for x in real)
        if not real:
            return "–"
        ends = binomtest(killed, len(real)).proportion_ci(method="wilson")
        return f"{killed} of {len(real)}, {killed / len(real):.1%} [{ends.low:.1%}, {ends.high:.1%}]"

    known = [x for x in lines if x["outcome"] == "survived" and key_of(x) in listed]
    counts = {name: sum(x["outcome"] == name for x in lines) for name in ("killed", "timed out", "survived")}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    out = [
        f"# Mutants: {len(lines)}",
        "",
        f"`{command}`",
        "",
        f"{told}, of these listed as no fault {len(known)}.",
        "",
        f"Killed of those that are a fault: **{share(lines)}** (95 %, Wilson; timed out counts as killed).",
        "",
        "| module | killed of the faults |",
        "| --- | --- |",
    ]
    for file in sorted({x["file"] for x in lines}):
        out.append(f"| {file} | {share([x for x in lines if x['file'] == file])} |")
    for title, part in (
        ("Survived", [x for x in lines if x["outcome"] == "survived" and x not in known]),
        ("Survived and listed", known),
        (
            "Listed but killed: take it out of the list",
            [x for x in lines if x["outcome"] != "survived" and key_of(x) in listed],
        ),
        ("Timed out", [x for x in lines if x["outcome"] == "timed out"]),
    ):
        if part:
            out += ["", f"## {title}: {len(part)}", ""]
        for x in sorted(part, key=lambda x: (x["file"], x["line"])):
            why = f" — {listed[key_of(x)]}" if key_of(x) in listed else ""
            out.append(f"* {x['file']}:{x['line']} ({x['kind']}): `{x['old']}` → `{x['new']}`{why}")
    return "\n".join(out) + "\n"


def key_of(line: dict) -> tuple[str, str, str]:
    return line["file"], line["old"], line["new"]


def read_table(root: Path) -> dict:
    from ruamel.yaml import YAML

    return {"preload": [], "no_fault": []} | YAML(typ="safe").load((root / TESTS).read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=80, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="parts of paths, comma-separated: loops,report/stats")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at once")
    parser.add_argument("--patience", type=float, default=30, help="seconds that a mutant may waste")
    parser.add_argument("--settings", action="store_true", help="numbers that are settings, too")
    parser.add_argument("--list", action="store_true", help="only say which mutants are drawn")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    root, table = given.root, read_table(given.root)
    listed = {key_of(entry): entry["why"] for entry in table["no_fault"]}
    drawn = chosen(
        root, table, [part for part in given.only.split(",") if part], given.count, given.seed, given.settings
    )
    if not drawn:
        print(f"There is no mutant of {given.only!r}; modules are listed in {TESTS}.", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(f"{m.file}:{m.line} ({m.kind}): {m.old} → {m.new}" for m in drawn))
        return 0
    home = root / "runs" / "mutation"
    home.mkdir(parents=True, exist_ok=True)
    kept = (
        [json.loads(line) for line in (home / "results.jsonl").read_text().splitlines()]
        if (home / "results.jsonl").is_file()
        else []
    )
    marks = {m: digest(root, m.file, *tests_of(table, m.file)) for m in drawn}
    done = {(*key_of(x), x["line"], x["digest"]): x for x in kept if "file" in x}
    times = {(x["baseline"], x["digest"]): x["seconds"] for x in kept if "baseline" in x}
    todo = [m for m in drawn if (*m.key, m.line, marks[m]) not in done]
    for name in table["preload"] if todo else ():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder, (home / "results.jsonl").open("a") as file:

        def keep(line: dict) -> dict:
            file.write(json.dumps(line) + "\n")
            file.flush()
            return line

        sets = list(dict.fromkeys(tests_of(table, m.file) for m in todo))
        limits = {s: times.get((" ".join(s), digest(root, *s))) for s in sets}
        new = [(None, s, 3600.0) for s in sets if limits[s] is None]
        for _, tests, outcome, seconds, failed in run_all(root, Path(folder), new, given.jobs):
            if outcome != "survived":
                print(f"The tests fail without any change: {' '.join(tests)}: {failed}", file=sys.stderr)
                return 2
            keep({"baseline": " ".join(tests), "digest": digest(root, *tests), "seconds": seconds})
            limits[tests] = seconds
            print(f"as it is   {seconds:6.1f} s  {' '.join(tests)}", flush=True)
        work = [(m, tests_of(table, m.file), SLOWER * limits[tests_of(table, m.file)] + given.patience) for m in todo]
        for m, _, outcome, seconds, failed in run_all(root, Path(folder), work, given.jobs):
            line = {k: v for k, v in asdict(m).items() if k not in ("start", "end", "text")}
            line |= {"outcome": outcome, "seconds": round(seconds, 1), "failed": failed, "digest": marks[m]}
            done[(*m.key, m.line, marks[m])] = keep(line)
            print(f"{outcome:10} {seconds:6.1f} s  {m.file}:{m.line}: {m.old} → {m.new}", flush=True)
    lines = [done[(*m.key, m.line, marks[m])] for m in drawn]
    command = (
        f'make mutate ARGS="--count {given.count} --seed {given.seed}'
        + (f" --only {given.only}" if given.only else "")
        + (" --settings" if given.settings else "")
        + '"'
    )
    text = report(lines, listed, command)
    (home / "report.md").write_text(text, encoding="utf-8")
    print("\n" + text + f"\nwritten to {home / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
