"""Parameters: every way a YAML file and a notebook can disagree is refused in one sentence that says what to write."""

import ast
import dataclasses

import pytest
from conftest import REPOSITORY, Suite

from seal_lib.errors import ParameterError
from seal_lib.runs import params

CELL = """
    # a comment line of its own is fine
    model: str = "tiny"  # model name
    lr: float = 1e-3  # learning rate
    steps: int = 5  # optimizer steps
    shuffle: bool = True  # order of the documents
    arms: list[str] = [  # arms, in order
        "frozen",
        "seal",
    ]
    limit: int | None = None  # at most so many passages
    day: str = "none"  # a text
"""


@pytest.fixture
def nb(suite: Suite) -> Suite:
    suite.notebook("10_demo", CELL, "print(lr)")
    suite.params("10_demo")
    return suite


def refused(scale: str = "seedling", overrides: dict | None = None) -> str:
    with pytest.raises(ParameterError) as error:
        params.resolve("10_demo", scale, overrides)
    message = str(error.value)
    assert "\n" not in message and message.endswith((".", "?")), message
    return message


def test_defaults_in_the_order_of_the_cell(nb: Suite) -> None:
    found = params.resolve("10_demo", "seedling")
    assert list(found) == ["model", "lr", "steps", "shuffle", "arms", "limit", "day"]
    assert found["arms"] == ["frozen", "seal"] and found["limit"] is None
    assert [p.help for p in params.declared("10_demo")][:2] == ["model name", "learning rate"]


def test_precedence_cell_file_full_set(nb: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    nb.params("10_demo", "steps: 6\nlr: 2.0e-3\nlimit: 3\n")
    nb.params("10_demo", "steps: 7\n", "seedling-full")
    assert params.resolve("10_demo", "seedling")["steps"] == 6
    monkeypatch.setenv("SET", "full")
    assert params.resolve("10_demo", "seedling")["steps"] == 7
    found = params.resolve("10_demo", "seedling", {"steps": "8"})
    assert (found["steps"], found["lr"], found["limit"], found["model"]) == (8, 0.002, 3, "tiny")
    monkeypatch.setenv("SET", "ful")
    assert "SET=full" in refused()
    assert params.scales("10_demo") == ["seedling"]


def test_smoke_is_seedling_with_smoke_on_top(nb: Suite) -> None:
    nb.params("10_demo", "steps: 6\nlimit: 9\n")
    assert params.smoke("10_demo")["steps"] == 6
    nb.params("10_demo", "steps: 1\n", "smoke")
    assert params.smoke("10_demo") == {**params.resolve("10_demo", "seedling"), "steps": 1}


def test_two_files_are_merged_by_key_and_never_inside_a_value(nb: Suite) -> None:
    nb.params("10_demo", "arms: [a, b, c]\n")
    nb.params("10_demo", "arms: [d]\n", "smoke")
    assert params.smoke("10_demo")["arms"] == ["d"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lr: 1e-4", "write 1.0e-4"),  # YAML 1.1 reads this as text, and papermill would pass the text on
        ("lr: 5E5", "write 5.0e+5"),
        ("lr: 2.5e3", "write 2.5e+3"),
        ("lr: fast", "write a number of type float"),
        ("lr: .nan", "not a finite number"),
        ("lr: yes", "where float is wanted"),
        ("steps: 1.0e+3", "write 1000"),
        ("steps: 2.5", "write a whole number"),
        ("steps: '7'", "write 7"),
        ("steps: true", "where int is wanted"),
        ("steps: null", "give a value of type int"),
        ("steps: 012", "octal or base 60"),
        ("steps: 1:30", "octal or base 60"),
        ("model: yes", "put the text in quotes"),
        ("model: on", "put the text in quotes"),
        ("model: 7", 'write "7"'),
        ("day: 2025-09-18", "is a date; put the text in quotes"),
        ("shuffle: 'true'", "write true or false"),
        ("shuffle: 1", "write true or false"),
        ("arms: frozen", "write [frozen]"),
        ("arms: [frozen, no]", "arms[1]=False is a truth value"),
        ("limit: many", "write a number of type int"),
        ("model: {name: a}", "nested mapping"),
        ("learning_rate: 1", "is not a parameter of 10_demo; it has model, lr"),
        ("step: 3", "did you mean 'steps'?"),
        ("lr: 0.1\nlr: 0.2", "stands twice"),
        ("- lr", "write lines `key: value`"),
        ("lr: [1", "line"),
    ],
)
def test_a_wrong_line_names_file_key_and_cure(nb: Suite, line: str, says: str) -> None:
    nb.params("10_demo", line)
    message = refused()
    assert says in message
    assert "params/10_demo/seedling.yaml" in message


def test_a_whole_number_serves_as_float(nb: Suite) -> None:
    nb.params("10_demo", "lr: 1\n")
    assert isinstance(params.resolve("10_demo", "seedling")["lr"], float)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("1e-4", "lr", 1e-4),
        ("3", "steps", 3),
        ("false", "shuffle", False),
        ("[a, b]", "arms", ["a", "b"]),
        ("none", "limit", None),
        ("4", "limit", 4),
        ("on", "day", "on"),
    ],
)
def test_set_is_read_by_the_declared_type(nb: Suite, text: str, name: str, value: object) -> None:
    assert params.resolve("10_demo", "seedling", {name: text})[name] == value


def test_set_refuses(nb: Suite) -> None:
    assert "--set: steps='1e3' is text; write 1000" in refused(overrides={"steps": "1e3"})
    assert "--set: shuffle='yes'" in refused(overrides={"shuffle": "yes"})
    assert "did you mean 'model'" in refused(overrides={"mode": "x"})


def test_a_missing_scale_or_notebook_says_what_there_is(nb: Suite) -> None:
    assert "10_demo has scales: seedling" in refused("paper")
    with pytest.raises(ParameterError, match="did you mean '10_demo'"):
        params.find("10_dmo")
    assert params.find("10") == "10_demo"


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("n: int = 3", "has no comment"),
        ("n = 3  # how many", "has no type"),
        ("n: int = 3  # how many\ntotal: int = n * 10  # derived", "is computed"),
        ("n: int = 3 * 10  # product", "is computed"),
        ("import os", "is not a parameter"),
        ("n: int  # no value", "is not a parameter"),
        ("n: dict = {}  # mapping", "unusable type"),
        ("n: str | int = 3  # union", "unusable type"),
        ("n: int = 0.5  # half", "the default=0.5 is a float"),
        ("n: int = 3  # one\nn: int = 4  # two", "twice"),
        ("%matplotlib inline", "is not Python"),
    ],
)
def test_a_wrong_declaration_names_the_line(suite: Suite, cell: str, says: str) -> None:
    suite.notebook("10_demo", cell)
    suite.params("10_demo")
    assert says in refused()


def test_exactly_one_tagged_cell_and_it_is_first(suite: Suite) -> None:
    suite.params("10_demo")
    suite.notebook("10_demo", "n: int = 3  # how many", tags=())
    assert "has 0 cells tagged" in refused()
    path = suite.notebook("10_demo", "n: int = 3  # how many", "m: int = 3  # how many")
    path.write_text(path.read_text().replace('"metadata": {}', '"metadata": {"tags": ["parameters"]}', 1))
    assert "has 2 cells tagged" in refused()
    path = suite.notebook("10_demo", "import os", "m: int = 3  # how many", tags=())
    path.write_text(path.read_text().replace('"metadata": {}', '"metadata": {"tags": ["parameters"]}', 1))
    assert "first code cell" in refused()


def test_check_all_sees_every_file(nb: Suite) -> None:
    assert params.check_all() == []
    nb.params("10_demo", "lr: 1e-4", "paper")
    nb.params("10_demo", "step: 1", "seedling-full")
    nb.params("11_gone", "")
    assert len(params.check_all()) == 3


def test_committed_parameters_fit_their_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEAL_SOURCE", "SEAL_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert REPOSITORY.joinpath("params").is_dir()
    assert params.check_all() == []


def test_every_notebook_has_every_scale() -> None:
    """No exceptions: `make reproduce SCALE=...` runs the same thirteen notebooks at each."""
    lacking = [
        f"{notebook} {scale}"
        for notebook in params.names()
        for scale in ("seedling", "smoke", "small", "paper")
        if scale not in params.scales(notebook)
    ]
    assert lacking == [] and len(params.names()) >= 13


def test_every_value_of_the_larger_scales_names_its_source() -> None:
    silent = []
    for path in sorted(params.paths.params().glob("*/*.yaml")):
        if path.stem.partition("-")[0] in ("small", "paper") and "-" not in path.stem:
            lines = path.read_text(encoding="utf-8").splitlines()
            values = [line for line in lines if line and not line.startswith("#")]
            silent += [f"{path.parent.name}/{path.name}: {line}" for line in values if "#" not in line]
    assert silent == []


@pytest.mark.parametrize(
    ("word", "notebook", "protocol"),
    [
        ("", "11_single_passage", "authors_v1"),
        ("clean", "11_single_passage", "clean"),
        ("authors_v2", "12_restem_rounds", "authors_v2"),
        ("", "20_arc_tasks", "authors"),
        ("", "21_arc_self_edits", "authors"),
        ("clean", "21_arc_self_edits", "clean"),
        ("clean", "14_continual_mitigations", "clean"),
    ],
)
def test_the_protocol_is_a_word(monkeypatch: pytest.MonkeyPatch, word: str, notebook: str, protocol: str) -> None:
    from seal_lib.knowledge.domain import InnerLoop

    monkeypatch.setenv("SET", word)
    found = params.resolve(notebook, "paper")
    assert found["protocol"] == protocol
    if "arc" not in notebook:
        names = {field.name for field in dataclasses.fields(InnerLoop)} & set(found)
        InnerLoop(**{name: found[name] for name in names})  # refuses pads that do not belong to the protocol


# ------------------------------------------------------------------------------- settings and parameters


@dataclasses.dataclass(frozen=True)
class Settings:
    lr: float
    clip: float = 1.0


def test_a_setting_that_no_parameter_reaches_is_refused_unless_it_is_named() -> None:
    assert params.pick(Settings, {"lr": 0.1, "clip": 2.0, "other": 5}) == Settings(0.1, 2.0)
    assert params.pick(Settings, {"lr": 0.1}, clip=3.0) == Settings(0.1, 3.0)
    with pytest.raises(ParameterError, match=r"^Settings has settings that no parameter reaches: clip; declare"):
        params.pick(Settings, {"lr": 0.1})
    for parameters, fixed in (({"lr": 0.1, "clip": 1.0}, {"clip": 2.0}), ({"lr": 0.1, "clip": 1.0}, {"slip": 2.0})):
        with pytest.raises(ParameterError, match="a parameter or no setting"):  # else one of the two says nothing
            params.pick(Settings, parameters, **fixed)


def picks(notebook: str) -> list[tuple[type, set[str]]]:
    """(settings, fields fixed by name) of every ``pick`` in a notebook."""
    from seal_lib.arc.domain import TestTimeTraining
    from seal_lib.knowledge.domain import InnerLoop
    from seal_lib.loops.settings import OuterLoop

    known = {cls.__name__: cls for cls in (InnerLoop, OuterLoop, TestTimeTraining)}
    found = []
    for node in ast.walk(ast.parse("\n".join(cell["source"] for cell in params.cells(notebook)))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "pick":
            cls = known[ast.unparse(node.args[0]).split(".")[-1]]
            found.append((cls, {word.arg for word in node.keywords}))
    return found


@pytest.mark.parametrize("notebook", params.names())
def test_every_setting_of_a_notebook_is_reached_and_every_parameter_is_used(notebook: str) -> None:
    declared = {parameter.name for parameter in params.declared(notebook)}
    reached: set[str] = set()
    for cls, fixed in picks(notebook):
        fields = {field.name for field in dataclasses.fields(cls)}
        assert fields - declared - fixed == set() and fixed <= fields - declared, (notebook, cls.__name__)
        reached |= fields
    code = ast.parse("\n".join(cell["source"] for cell in params.cells(notebook)[1:]))
    named = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
    assert declared - reached - named == set(), notebook


def test_both_notebooks_of_the_single_passage_table_sample_the_same_untrained_self_edits() -> None:
    for scale in ("seedling", "smoke", "small", "paper"):
        alone, rounds = params.resolve("11_single_passage", scale), params.resolve("12_restem_rounds", scale)
        shared = set(alone) & set(rounds) - {"workers", "ray_address", "prompts_file"}
        assert "seeds" in shared and {key for key in shared if alone[key] != rounds[key]} == set(), scale
