"""Self-edits: a strict schema, and a malformed corpus in which every case is a rejection with a reason."""

import json
import random

import pytest

from seal_lib.arc import prompts
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.self_edits import ORACLE, REASONS, SCHEMA, STRATEGIES, Config, ConfigLimits, read, with_data
from seal_lib.arc.tasks import Pair, Task

GOOD = ORACLE.text()
DATA, TRAIN = "data_generation", "training"
OFF = "the key is removed"


def edit(*path: str, value: object) -> str:
    """The good self-edit with one value replaced or removed."""
    whole = json.loads(GOOD)
    holder = whole
    for key in path[:-1]:
        holder = holder[key]
    if value is OFF:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return json.dumps(whole)


def raw(key: str, value: str) -> str:
    """The good self-edit with the text of one training value replaced by text that need not be JSON."""
    old = {"learning_rate": "0.0001", "num_train_epochs": "2", "strategy": '"train_using_output_tokens"'}[key]
    assert GOOD.count(f'"{key}": {old}') == 1
    return GOOD.replace(f'"{key}": {old}', f'"{key}": {value}')


JUNK = [None, "true", "false", "", 0, 1, 0.5, [], {}, [True], {"a": 1}]


def malformed() -> dict[str, list[str]]:
    """Reason → texts."""
    objects = [(DATA,), (TRAIN,)]
    switches = [(DATA, s) for s in SWITCHES]
    numbers = [(TRAIN, "learning_rate"), (TRAIN, "num_train_epochs")]
    every = [*objects, *switches, *numbers, (TRAIN, "strategy")]
    wrong_type = [edit(*path, value=junk) for path in switches for junk in JUNK]
    wrong_type += [edit(*path, value=j) for path in numbers for j in (None, "1", "1e-4", True, False, [], {}, [1])]
    wrong_type += [edit(TRAIN, "strategy", value=j) for j in (None, 0, 1.5, True, [], {}, ["train_using_all_tokens"])]
    wrong_type += [raw("num_train_epochs", v) for v in ("2.0", "2.5", "1e1", "1e999", "-0.0")]
    prose = ["Sure! ", "```json\n", "Here is the configuration:\n", "# ", "\ufeff", "{}", "[", "<think>\n</think>\n"]
    not_json = [p + GOOD for p in prose] + [GOOD + p for p in (" Hope it helps.", "\n```", "}", GOOD, "#", ",", "\0")]
    not_json += [GOOD[:cut] for cut in range(1, len(GOOD), 7)]
    not_json += [
        GOOD.replace("}", ",}", 1),
        GOOD.replace('"', "'"),
        GOOD.replace("true", "True"),
        GOOD.replace(":", "="),
    ]
    not_json += [GOOD.replace("}}", "}} // done"), GOOD.replace('"training"', "training"), "{" * 3999, "[" * 3999]
    not_json += ['{"a":' * 790, "\ud800", "nul", "{", "}", '"', "\\", "\x00\x01", "😀", "-", "tru", "..."]
    not_json += [
        raw("learning_rate", v) for v in ("NaN", "Infinity", "-Infinity", "1e", ".1", "0x1", "1_0", "01", "1,5", "...")
    ]
    not_json += [raw("num_train_epochs", v) for v in ("+2", "two", "2 epochs", "NaN", "...", "")]
    other = [f"[{GOOD}]", json.dumps(GOOD), "null", "true", "3", "0.5", '"text"', "[]", "[[[[]]]]"]
    other += [edit(*path, value=j) for path in objects for j in JUNK[:8]]
    return {
        "empty": ["", " ", "\n\n\t"],
        "too_long": [" " * 4001 + GOOD, "a" * 2**20, "[" * 2**20, GOOD * 4000, edit(DATA, "x", value="y" * 2**20)],
        "not_json": not_json,
        "not_object": other,
        "duplicate_key": [
            GOOD.replace('"strategy"', '"strategy": "train_using_all_tokens", "strategy"'),
            GOOD.replace(f'"{SWITCHES[0]}"', f'"{SWITCHES[0]}": false, "{SWITCHES[0]}"'),
            GOOD.replace(f'"{TRAIN}"', f'"{DATA}": {{}}, "{TRAIN}"'),
            '{"\\ud800": 1, "\\ud800": 2}',
        ],
        "missing_key": [edit(*path, value=OFF) for path in every] + ["{}", f'{{"{DATA}": {{}}}}', '{"a": 1}'],
        "unknown_key": [
            *(edit(*where, "extra", value=j) for where in ((), (DATA,), (TRAIN,)) for j in JUNK[:4]),
            edit(TRAIN, "Strategy", value="train_using_all_tokens"),
            edit(TRAIN, "\ud800", value=1),
        ],
        "wrong_type": wrong_type,
        "unknown_strategy": [
            edit(TRAIN, "strategy", value=v)
            for v in ("", "all", "train_using_all_tokens ", "TRAIN_USING_ALL_TOKENS", "...", "\ud800", "x" * 999)
        ],
        "out_of_range": [
            *(raw("learning_rate", v) for v in ("0", "0.0", "-0.0", "-1e-4", "-1", "1.0001", "2")),
            *(raw("learning_rate", v) for v in ("1e9", "1e999", "-1e999", "1e-999", "9" * 3000)),
            *(raw("num_train_epochs", v) for v in ("0", "-1", "376", "1000000000", "9" * 3000, "-" + "9" * 3000)),
        ],
    }


CORPUS = malformed()


def test_the_corpus_is_large_and_touches_every_reason() -> None:
    distinct = {text for texts in CORPUS.values() for text in texts}
    assert len(distinct) >= 200
    assert set(CORPUS) == set(REASONS) - {"too_many_steps"}  # that one needs the data


@pytest.mark.parametrize("reason", CORPUS)
def test_every_malformed_case_is_a_rejection_with_its_reason(reason) -> None:
    for text in CORPUS[reason]:
        reading = read(text)
        assert (reading.reason, reading.config) == (reason, None), text[:300]
        assert reading.text == text and reading.detail.startswith(REASONS[reason])
        assert len(reading.detail) < 300 and "\n" not in reading.detail
        reading.detail.encode()  # can be written down, whatever the text held
        assert with_data(reading, 10) is reading


def test_random_damage_is_never_a_crash() -> None:
    draws = random.Random(0)
    pieces = ["{", "}", '"', ":", ",", "true", "1e9", "-", "NaN", "\\u", "null", "[", "]", " ", "\ud800", "é", "0"]
    seen = set()
    for _ in range(5000):
        text = GOOD
        for _ in range(draws.randint(1, 4)):
            at, cut = draws.randrange(len(text)), draws.choice((0, 1, 1, 3, 20))
            text = text[:at] + draws.choice(pieces) + text[at + cut :]
        reading = read(text)
        assert (reading.config is None) == (reading.reason in REASONS) and reading.text == text
        if reading.config is not None:
            assert read(reading.config.text()).config == reading.config
            assert 0 < reading.config.learning_rate <= 1 and 1 <= reading.config.epochs <= 375
        seen.add(reading.reason)
    assert {"", "not_json", "missing_key", "unknown_strategy"} <= seen
    for value in (None, 3, b"{}", ["{}"]):
        assert read(value).reason == "not_json"


def test_good_self_edits_are_read_and_equal_ones_are_equal() -> None:
    assert read(GOOD).config == ORACLE and ORACLE.loss_on == "output" and read(GOOD).reason == ""
    spread = "\n " + json.dumps(dict(reversed(json.loads(GOOD).items())), indent=4) + " \n"
    assert read(spread).config == ORACLE and len({read(spread).config, ORACLE}) == 1
    assert read(raw("learning_rate", "1e-4")).config == read(raw("learning_rate", "1E-04")).config == ORACLE
    whole = read(raw("learning_rate", "1")).config
    assert whole.learning_rate == 1.0 and isinstance(whole.learning_rate, float)
    for strategy in STRATEGIES:
        for bits in range(16):
            on = tuple(s for i, s in enumerate(SWITCHES) if bits >> i & 1)
            config = Config(on, strategy, 3e-3, 375)
            assert read(config.text()).config == config
    for epochs, reason in ((0, "out_of_range"), (1, ""), (8, ""), (9, "out_of_range")):
        assert read(edit(TRAIN, "num_train_epochs", value=epochs), ConfigLimits(max_epochs=8)).reason == reason
    for rate, reason in ((0, "out_of_range"), (1e-12, ""), (0.1, ""), (0.2, "out_of_range")):
        assert read(edit(TRAIN, "learning_rate", value=rate), ConfigLimits(max_rate=0.1)).reason == reason


def test_too_many_steps_is_a_rejection_once_the_data_is_known() -> None:
    reading = read(edit(TRAIN, "num_train_epochs", value=4))
    assert with_data(reading, 96) is reading
    assert with_data(reading, 192).reason == "too_many_steps" and with_data(reading, 192).config is None
    assert "384 steps" in with_data(reading, 192).detail
    assert read("").reason == "empty"


def test_the_schema_names_what_is_read() -> None:
    parts = SCHEMA["properties"]
    whole = json.loads(GOOD)
    assert list(whole) == SCHEMA["required"] == list(parts)
    for part in (DATA, TRAIN):
        assert list(whole[part]) == parts[part]["required"] == list(parts[part]["properties"])


@pytest.mark.parametrize("name", ["chat", "base"])
def test_the_prompt_shows_demonstrations_and_keys_but_no_test(name) -> None:
    task = Task("t", (Pair(((1, 2), (3, 4)), ((4, 3),)), Pair(((5,),), ((6,),))), (((9, 8, 7),),), (((0, 9, 8),),))
    said, asked = prompts.load(name).write(task)
    assert said == {"chat": "You are a helpful assistant that configures training runs.", "base": ""}[name]
    start = "Input:\n1 2\n3 4\n\nOutput:\n4 3\n\nInput:\n5\n\nOutput:\n6\n\n------\n\n"
    assert asked.startswith(start) and "9 8 7" not in asked and "0 9 8" not in asked
    words = [*SWITCHES, *STRATEGIES, "learning_rate", "num_train_epochs", DATA, TRAIN]
    assert all(word in asked for word in words)
    (skeleton,) = [line for line in asked.split("\n") if line.startswith("{")]
    assert read(skeleton).reason == "not_json"  # copying the form is not an answer
    form = {DATA: dict.fromkeys(SWITCHES, "..."), TRAIN: dict.fromkeys(json.loads(GOOD)[TRAIN], "...")}
    assert skeleton == json.dumps(form).replace('"..."', "...")
