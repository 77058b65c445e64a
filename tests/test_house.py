"""The layout: packages with arrows one way, few loose modules, loops that know no domain."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "seal_lib"
#: arrows point down this list, never up
FLOORS = [
    "__main__",
    "bench",
    "plan",
    "touch",
    "seedling audit",
    "store",
    "continual",
    "knowledge arc",
    "loops",
    "grading",
    "generation",
    "training",
    "report",
    "runs",
    "models",
    "records",
    "seeds",
    "paths",
    "errors",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def modules() -> dict[str, Path]:
    """Dotted name → file of every module of the library."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[tuple[str, str]]:
    """(module of the library, name taken from it) of every import statement, those in functions too."""
    taken = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            taken |= {(alias.name, "") for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative imports hide the arrows"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    taken.add((whole, ""))
                elif node.module in known:
                    taken.add((node.module, alias.name))
    return {(module, what) for module, what in taken if module not in (name, "seal_lib")}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def defined(path: Path) -> set[str]:
    """The names that stand at the top of a module, without private ones."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return {name for name in found if not name.startswith("_")}


KNOWN = modules()
IMPORTS = {name: imports(name, path, KNOWN) for name, path in KNOWN.items()}
DEFINED = {name: defined(path) for name, path in KNOWN.items()}
#: names that may stand in several modules → why
SEVERAL = {
    "EXPERIMENT": "means one thing everywhere: the experiment whose rows the module makes or shows",
    "main": "what a command calls",
}


def test_every_room_has_a_floor_and_few_modules_are_loose() -> None:
    rooms = {room(name) for name in KNOWN} - {""}
    assert rooms == set(FLOOR)
    loose = [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= 6, loose


def test_tests_are_laid_out_like_the_packages_they_test() -> None:
    """Tests of one package are in the folder of its name; tests of several or of the repository are beside them."""
    tests = REPOSITORY / "tests"
    folders = {path.parent.name for path in tests.rglob("test_*.py") if path.parent != tests}
    rooms = {path.parent.name for path in (REPOSITORY / "seal_lib").glob("*/__init__.py")}
    assert len(folders) > 10 and folders <= rooms


def test_no_arrow_points_up() -> None:
    up = [
        f"{name} takes {module}"
        for name, taken in IMPORTS.items()
        for module, _ in taken
        if room(name) and room(module) != room(name) and FLOOR[room(module)] <= FLOOR[room(name)]
    ]
    assert not up, "\n".join(sorted(set(up)))


def test_no_circle_of_modules() -> None:
    graph = {name: {module for module, _ in taken} for name, taken in IMPORTS.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nobody_takes_a_private_name_of_another_room() -> None:
    private = [
        f"{name} takes {module}.{what}"
        for name, taken in IMPORTS.items()
        for module, what in taken
        if what.startswith("_") and not what.startswith("__") and room(module) != room(name)
    ]
    assert not private, private


def test_a_class_or_a_constant_has_one_home() -> None:
    homes: dict[str, list[str]] = {}
    for module, names in DEFINED.items():
        for name in names:
            if name[0].isupper():
                homes.setdefault(name, []).append(module)
    assert not {name: at for name, at in homes.items() if len(at) > 1 and name not in SEVERAL}


def test_a_name_that_is_imported_bare_means_one_thing() -> None:
    """Names that are read with their module's name (``journal.read``) may stand in several."""
    tests = {path.stem: imports(path.stem, path, KNOWN) for path in (REPOSITORY / "tests").rglob("*.py")}
    homes: dict[str, set[str]] = {}
    for taken in (*IMPORTS.values(), *tests.values()):
        for module, name in taken:
            if name in DEFINED[module] - SEVERAL.keys():
                homes.setdefault(name, set()).add(module)
    assert not {name: at for name, at in homes.items() if len(at) > 1}


@pytest.mark.parametrize("name", [name for name in KNOWN if name.startswith("seal_lib.loops")])
def test_loops_know_no_domain_and_no_tensors(name: str) -> None:
    tree = ast.parse(KNOWN[name].read_text(encoding="utf-8"))
    for node in tree.body:  # a type named for readers and checkers is not imported
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [line for line in node.body if getattr(line, "module", "").startswith("seal_lib")] or [
                ast.Pass()
            ]
    names = {
        part.split(".")[0]
        for node in ast.walk(tree)
        for part in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module
            else []
        )
    }
    assert not names & {"torch", "pandas", "matplotlib", "numpy", "transformers", "peft"}
    assert not {room(module) for module, _ in IMPORTS[name]} & {"knowledge", "arc", "continual"}


def test_the_loops_are_short() -> None:
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / "loops").glob("*.py")}
    assert sum(lines.values()) < 1500, lines


def test_nothing_is_unpickled_or_executed_but_notebooks_by_the_plan() -> None:
    """Weights are safetensors, code of others is off, and `exec` is the dry run's, on the committed notebooks."""
    found = []
    for name, path in KNOWN.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                taken = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found += [
                    (name, what) for what in taken if what.split(".")[0] in ("pickle", "dill", "shelve", "marshal")
                ]
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("exec", "eval", "torch.load", "joblib.load") or called.endswith("load_pickle"):
                found.append((name, called))
            for key in node.keywords:
                if key.arg == "trust_remote_code" and not (isinstance(key.value, ast.Constant) and not key.value.value):
                    found.append((name, "trust_remote_code"))
    assert found == [("seal_lib.plan.cells", "exec")]
