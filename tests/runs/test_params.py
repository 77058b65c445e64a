"""Parameters: every way a YAML file and a notebook can disagree is refused in one sentence that says what to write."""

import ast
import dataclasses

import pytest
from conftest import REPOSITORY, Suite
from hypothesis import given
from hypothesis import strategies as st

from seal_lib.errors import ParameterError
from seal_lib.runs import manifest, params, values, yaml_files

CELL = """
    from typing import Literal

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
    grader: Literal["exact", "contains", "f1"] = "exact"  # what judges the answers
    styles: list[Literal["plain", "rich"]] = ["plain"]  # closed words in a list
    seeds: list[int] = [0]  # loops
    top_p: float = 0.95  # sampling
    n_passages: int = 3  # how many
    questions: int | None = None  # kept per passage
    sft_weight_decay: float = 0.0  # of AdamW
    pad_loss: str = "eos"  # a text of a few forms
    note: str = ""  # may be empty
    others: list[str] = []  # may be empty
"""
NAMES = """
    model lr steps shuffle arms limit day grader styles seeds top_p n_passages questions sft_weight_decay pad_loss note
    others
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
    assert list(found) == NAMES.split()
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
    assert params.resolve("10_demo", "smoke")["steps"] == 6
    nb.params("10_demo", "steps: 1\n", "smoke")
    assert params.resolve("10_demo", "smoke") == {**params.resolve("10_demo", "seedling"), "steps": 1}


def test_two_files_are_merged_by_key_and_never_inside_a_value(nb: Suite) -> None:
    nb.params("10_demo", "arms: [a, b, c]\n")
    nb.params("10_demo", "arms: [d]\n", "smoke")
    assert params.resolve("10_demo", "smoke")["arms"] == ["d"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lr: fast", "write a number of type float"),
        ("lr: '1e-4'", "write 0.0001"),
        ("lr: .nan", "not a finite number"),
        ("lr: 1e400", "not a finite number"),
        ("lr: yes", "lr='yes' is text"),
        ("lr: true", "where float is wanted"),
        ("lr: 0", "lr=0.0 is out of range; give a number above 0"),
        ("lr: -0.002", "give a number above 0"),
        ("steps: 1e3", "write 1000"),
        ("steps: 2.5", "write a whole number"),
        ("steps: '7'", "write 7"),
        ("steps: 1:30", "write a number of type int"),
        ("steps: true", "where int is wanted"),
        ("steps: null", "give a value of type int"),
        ("steps: 0", "give a number from 1"),
        ("steps: 99999999999999999999", "out of range"),
        ("model: true", "is a truth value; put the text in quotes"),
        ("model: 7", "is a number; put the text in quotes"),
        ("model: 00576224", "put the text in quotes"),
        ("model: ''", "is an empty text"),
        ("model: [a]", "has type list where str is wanted"),
        ("shuffle: 'true'", "write true or false"),
        ("shuffle: yes", "write true or false"),
        ("shuffle: 1", "write true or false"),
        ("arms: frozen", "write [frozen]"),
        ("arms: []", "arms is an empty list; name at least one"),
        ("arms: [seal, frozen, seal]", "'seal' stands twice; keep one"),
        ("arms: [frozen, false]", "arms[1]=False is a truth value"),
        ("arms: [frozen, ' ']", "is an empty text"),
        ("grader: Exact", "is not one of exact, contains, f1; did you mean 'exact'?"),
        ("grader: blank", "is not one of exact, contains, f1; choose one"),
        ("grader: null", "give a value of type exact or contains or f1"),
        ("styles: [plain, rch]", "styles[1]='rch' is not one of plain, rich; did you mean 'rich'?"),
        ("seeds: [0, -1]", "seeds=-1 is out of range; give a number from 0 to 4294967295"),
        ("seeds: [1, 1]", "stands twice"),
        ("seeds: []", "is an empty list"),
        ("top_p: 0", "give a number above 0 to 1"),
        ("top_p: 1.01", "give a number above 0 to 1"),
        ("n_passages: -1", "n_passages=-1 is out of range; give a number from 1"),
        ("questions: -1", "give a number from 1, or null for all"),
        ("sft_weight_decay: -0.1", "give a number from 0"),
        ("pad_loss: probe:0", "write none, eos, full or probe:m"),
        ("limit: many", "write a number of type int"),
        ("model: {name: a}", "nested mapping"),
        ("learning_rate: 1", "is not a parameter of 10_demo; it has model, lr"),
        ("step: 3", "did you mean 'steps'?"),
        ("7: 3", "7 is not a parameter of 10_demo"),
        ("lr: 0.1\nlr: 0.2", "line 2: the key 'lr' stands twice"),
        ("lr: !!python/name:os.system 1", "line 1: not YAML"),
        ("lr: \0", "not YAML"),
        ("lr: " + "9" * 5000, "thousands of digits"),
        ("arms: " + "[" * 5000, "too deep"),
        ("arms: &a [b]\nx: [" + "*a, " * 21 + "]", "more than 20 aliases"),
        ("include: models/small", "include is a list"),
        ("include: [[models/small]]", "include is a list"),
        ("include: [models/small]", "there is no shared file 'models/small'"),
        ("- lr", "write lines `key: value`"),
        ("lr: [1", "line"),
    ],
)
def test_a_wrong_line_names_file_key_and_cure(nb: Suite, line: str, says: str) -> None:
    nb.params("10_demo", line)
    message = refused()
    assert says in message
    assert "params/10_demo/seedling.yaml" in message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("lr: 1e-3".encode("utf-16"), "is not UTF-8 text (byte 1)"),
        ("model: Zürich".encode("latin-1"), "is not UTF-8 text (byte 9)"),
        (b"# " + b"x" * 2**18, "has more than 262144 bytes"),
    ],
)
def test_a_file_that_is_no_small_text_is_refused(nb: Suite, data: bytes, says: str) -> None:
    nb.params("10_demo").write_bytes(data)
    assert says in refused()


def test_yaml_means_what_people_think(nb: Suite) -> None:
    nb.params("10_demo", "lr: 1e-4\nsteps: 012\nmodel: on\nday: 2025-09-18\narms: [no, off, 1:30]\n")
    found = params.resolve("10_demo", "seedling")
    assert [found[name] for name in ("lr", "steps", "model", "day")] == [1e-4, 12, "on", "2025-09-18"]
    assert found["arms"] == ["no", "off", "1:30"]


def test_what_never_ends_is_not_read(tmp_path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "pipe", "is not a file"),
        (tmp_path, "is not a file"),
        (tmp_path / "x", "does not exist"),
    ):
        with pytest.raises(ParameterError, match=says):
            yaml_files.read(path)


# ------------------------------------------------------------------------------------------------ shared files


def test_shared_files_lie_under_the_files_own_lines(nb: Suite) -> None:
    nb.params("_models", "model: big\nsteps: 3\nrank: 8\n", "large")
    nb.params("_recipes", "steps: 4\nlr: 1e-4\nlimit: 5\n", "theirs")
    nb.params("10_demo", "include: [models/large, recipes/theirs]\nlimit: 6\n")
    found = params.resolve("10_demo", "seedling")  # rank is no parameter of this notebook
    assert [found[name] for name in ("model", "steps", "lr", "limit")] == ["big", 4, 1e-4, 6]
    nb.params("10_demo", "include: [recipes/theirs]\n", "smoke")  # an overlay's shared files lie over the scale
    assert params.resolve("10_demo", "smoke")["limit"] == 5 and params.resolve("10_demo", "smoke")["model"] == "big"
    assert params.sets() == [] and params.check_all() == [
        "params/_models/large.yaml: 'rank' is a parameter of no notebook that includes this file; remove it."
    ]


def test_a_wrong_shared_file_is_named(nb: Suite) -> None:
    nb.params("_models", "lr: fast\n", "large")
    nb.params("10_demo", "include: [models/lagre]\n")
    assert "did you mean 'models/large'?" in refused()
    nb.params("10_demo", "include: [models/large]\n")
    assert refused().startswith("params/_models/large.yaml: lr='fast' is text")
    nb.params("10_demo", "include: [models/large, models/large]\n")
    assert "different shared files" in refused()
    nb.params("10_demo", "include: [models/large]\n")
    nb.params("_models", "include: [models/other]\n", "large")
    assert "includes none itself" in refused()
    nb.params("_models", "lr: [", "large")
    assert len(params.check_all()) == 1 and "params/_models/large.yaml: line 1" in params.check_all()[0]
    nb.params("_models", "lr: 1", "large")
    nb.params("10_demo")
    assert params.check_all() == ["params/_models/large.yaml is included by no file; remove it."]


def test_a_value_is_told_once() -> None:
    """No file repeats what its shared files say, and no shared file says what nobody takes."""
    twice = []
    for path in sorted(params.paths.params().glob("[!_]*/*.yaml")):
        *shared, own = params.layers_of(path)
        under = {key: value for layer in shared for key, value in layer.values.items()}
        twice += [f"{own.source}: {key}" for key, value in own.values.items() if under.get(key, "—") == value]
    assert twice == []


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
        ("2025-09-18", "day", "2025-09-18"),
        ("0", "sft_weight_decay", 0.0),
        ("[1, 2]", "seeds", [1, 2]),
    ],
)
def test_set_is_read_by_the_declared_type(nb: Suite, text: str, name: str, value: object) -> None:
    assert params.resolve("10_demo", "seedling", {name: text})[name] == value


def test_set_refuses(nb: Suite) -> None:
    assert "--set: steps='1e3' is text; write 1000" in refused(overrides={"steps": "1e3"})
    assert "--set: steps='99" in (long := refused(overrides={"steps": "9" * 5000})) and len(long) < 200
    assert "did you mean 'contains'?" in refused(overrides={"grader": "contain"})
    assert "give a number from 1" in refused(overrides={"n_passages": "-1"})
    assert "write [a" in refused(overrides={"arms": "a"})
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
        ("n: Literal[1, 2] = 1  # numbers", "unusable type"),
        ('n: Literal["a"] = "b"  # not one of them', "the default n='b' is not one of a"),
        ("include: int = 3  # the key of shared files", "use another name"),
        ("n_edits: int = 0  # none", "the default n_edits=0 is out of range"),
        ("n: int = 0.5  # half", "the default n=0.5 is float"),
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
    nb.params("10_demo", "lr: fast", "paper")
    nb.params("10_demo", "step: 1", "seedling-full")
    nb.params("11_gone", "")
    assert len(params.check_all()) == 3


def test_committed_parameters_fit_their_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEAL_SOURCE", "SEAL_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert REPOSITORY.joinpath("params").is_dir()
    assert params.check_all() == []


def test_every_notebook_has_every_scale(monkeypatch) -> None:
    """`make reproduce SCALE=...` runs the same notebooks at each, seedling with SET=full; the round by hand is at home
    at one."""
    assert not params.at("17_other_models", "seedling") and params.at("17_other_models", "smoke")  # not in the core set
    monkeypatch.setenv("SET", "full")
    lacking = [
        f"{notebook} {scale}"
        for notebook in params.names()
        for scale in ("seedling", "smoke", "small", "paper")
        if notebook != "02_restem_by_hand" and scale not in params.scales(notebook)
    ]
    assert lacking == [] and len(params.names()) >= 13


def test_every_value_of_the_larger_scales_names_its_source() -> None:
    silent = []
    for path in sorted(params.paths.params().glob("*/*.yaml")):
        shared = path.parent.name.startswith("_") and not path.stem.endswith(("smoke", "seedling"))
        if shared or path.stem in ("small", "paper"):
            lines = path.read_text(encoding="utf-8").splitlines()
            values = [line for line in lines if line and not line.startswith(("#", "include:"))]
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


def test_a_rare_setting_has_its_default_unless_a_parameter_or_the_notebook_names_it() -> None:
    made = dataclasses.make_dataclass(
        "Rare", [("lr", float), ("few", int, dataclasses.field(default=0, metadata=params.RARE))]
    )
    found = [
        params.pick(made, given, **fixed).few
        for given, fixed in (({"lr": 0.1}, {}), ({"lr": 0.1, "few": 2}, {}), ({"lr": 0.1}, {"few": 3}))
    ]
    assert found == [0, 2, 3]


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
    from seal_lib.loops.settings import OuterLoop, Pretraining
    from seal_lib.store.harness import Tasks
    from seal_lib.store.search import Search

    known = {cls.__name__: cls for cls in (InnerLoop, OuterLoop, Pretraining, TestTimeTraining, Search, Tasks)}
    found = []
    for node in ast.walk(ast.parse("\n".join(cell["source"] for cell in params.cells(notebook)))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "pick":
            cls = known[ast.unparse(node.args[0]).split(".")[-1]]
            found.append((cls, {word.arg for word in node.keywords}))
    return found


@pytest.mark.parametrize("notebook", params.names())
def test_every_setting_of_a_notebook_is_reached_and_every_parameter_is_used(notebook: str) -> None:
    declared = {parameter.name for parameter in params.declared(notebook)}
    reached = {*manifest.MORE}  # the run itself reads these
    for cls, fixed in picks(notebook):
        fields = {field.name for field in dataclasses.fields(cls)}
        rare = {field.name for field in dataclasses.fields(cls) if field.metadata.get("rare")}
        assert fields - rare - declared - fixed == set() and fixed <= fields - declared, (notebook, cls.__name__)
        reached |= fields
    code = ast.parse("\n".join(cell["source"] for cell in params.cells(notebook)[1:]))
    named = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
    assert declared - reached - named == set(), notebook


def test_both_notebooks_of_the_single_passage_table_sample_the_same_untrained_self_edits() -> None:
    for scale in ("seedling", "smoke", "small", "paper"):
        alone, rounds = params.resolve("11_single_passage", scale), params.resolve("12_restem_rounds", scale)
        shared = set(alone) & set(rounds) - {"workers", "ray_address", "prompts_file"}
        assert "seeds" in shared and {key for key in shared if alone[key] != rounds[key]} == set(), scale


# ------------------------------------------------------------------------------- choices and ranges of the notebooks


def of_all(kind: str) -> list[tuple[str, params.Parameter]]:
    """(notebook, parameter) of every committed parameter that holds values of a kind."""
    return [
        (notebook, parameter)
        for notebook in params.names()
        for parameter in params.declared(notebook)
        if kind in (parameter.type.kind, parameter.type.item and parameter.type.item.kind)
    ]


def test_every_numeric_parameter_has_a_range() -> None:
    numbers = {parameter.name for kind in ("int", "float") for _, parameter in of_all(kind)}
    assert len(numbers) > 40 and {name for name in numbers if values.range_of(name) is None} == set()


def test_every_form_is_of_a_parameter() -> None:
    assert set(values.FORMS) <= {parameter.name for _, parameter in of_all("str")}


def test_the_choices_of_the_cells_are_the_rows_of_the_registries() -> None:
    """Puzzles, the forgetting study and single passages each have graders and protocols of their own."""
    from seal_lib.arc import augment
    from seal_lib.arc import domain as arc
    from seal_lib.continual.edits import VERDICTS
    from seal_lib.generation.engines import ENGINES
    from seal_lib.grading.graders import ALWAYS, GRADERS
    from seal_lib.knowledge import rubrics, strategies
    from seal_lib.knowledge.documents import PROTOCOLS
    from seal_lib.loops.rewards import FILTERS, REWARDS
    from seal_lib.loops.settings import COPIES, METHODS
    from seal_lib.loops.updates import UPDATES
    from seal_lib.models.checks import DTYPES
    from seal_lib.store.routing import ROUTES
    from seal_lib.store.search import RETRIEVALS
    from seal_lib.training.jobs import SCHEDULES

    rows = {
        "dtype": DTYPES[1:],
        "device": ("auto", "cpu", "cuda"),
        "engine": ("auto", *ENGINES),
        "schedule": SCHEDULES,
        "sft_schedule": SCHEDULES,
        "reward": REWARDS,
        "filter": FILTERS,
        "update": UPDATES,
        "views": arc.VIEWS,
        "route": ROUTES,
        "grader": GRADERS,
        "protocol": PROTOCOLS,
        "loss_on": ("output", "all"),
        "sequences": ("disjoint", "authors", "authors_dev"),
        "cpt_method": METHODS,
        "cpt_passages": COPIES,
        "cpt_schedule": SCHEDULES,
        "seal_from": ("policy", "base"),
        "retrieval": RETRIEVALS,
        "strategy_writer": strategies.STRATEGY_WRITERS,
        "rubric": rubrics.NAMES,
        "poor_rubric": rubrics.NAMES,
    }
    puzzles = {"grader": arc.PUZZLE_GRADERS, "protocol": augment.ARC_PROTOCOLS}
    study = {"grader": VERDICTS, "protocol": ("clean",), "engine": ENGINES}
    special = dict.fromkeys(("13", "14", "15", "16"), study) | dict.fromkeys(("03", "04", "05"), {"grader": ALWAYS})
    chosen = set()
    for notebook, parameter in of_all("str"):
        own = puzzles if notebook[0] == "2" else special.get(notebook[:2], {})
        if parameter.name in rows:
            chosen.add(parameter.name)
            wanted = set(own.get(parameter.name, rows[parameter.name]))
            assert set(parameter.type.choices) == wanted, f"{notebook}: {parameter.name}"
        else:
            assert not parameter.type.choices, f"{notebook}: {parameter.name} has no registry in this test"
    assert chosen == set(rows)


# ---------------------------------------------------------------------------------------------- any file, any value

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4)
VALUES = st.recursive(
    SCALARS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=2),
    max_leaves=5,
)
KEYS = st.sampled_from(NAMES.split()) | st.text(max_size=6)
#: what stands in a parameter file, in any order and half of it broken
PIECES = st.sampled_from(
    [
        *(f"\n{name}: " for name in NAMES.split()),
        "\ninclude: ",
        "1",
        "1e-3",
        "true",
        "null",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "- ",
        "  ",
        "\t",
        "'",
        '"',
        "&a ",
        "*a",
        "!!python/object:x ",
        "!!binary ",
        "<<: ",
        "? ",
        "|",
        "#",
        "---",
        "%YAML 1.2",
        "2026-01-01",
        "0x1f",
        ".nan",
        "-.inf",
        "9" * 5000,
        "\u0085",
        "\ufeff",
        "\x00",
        "é",
    ]
) | st.text(max_size=4)


def fits_or_is_one_sentence(overrides: dict | None = None) -> None:
    """What is taken fits what the cell declares; what is not is refused in one line that ends as a sentence."""
    try:
        found = params.resolve("10_demo", "seedling", overrides)
    except ParameterError as error:
        assert "\n" not in str(error) and str(error).endswith((".", "?")) and len(str(error)) < 600, error
    else:
        assert all(p.fit(found[p.name]) == ("", found[p.name]) for p in params.declared("10_demo"))


@given(
    st.lists(PIECES, max_size=12).map("".join).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=60)
    | st.text(max_size=20).map(lambda text: text.encode("utf-16"))
)
def test_any_bytes_are_parameters_or_one_sentence(nb: Suite, content: bytes) -> None:
    nb.params("10_demo").write_bytes(content)
    fits_or_is_one_sentence()


@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_values_are_parameters_or_one_sentence(nb: Suite, given_: dict) -> None:
    fits_or_is_one_sentence(given_)
    for key, value in given_.items():
        fits_or_is_one_sentence({key: str(value)})  # as --set gives it
