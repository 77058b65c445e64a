"""The made world: who may be seen where, what passages say, and what describe_notes counts."""

import re
from collections.abc import Iterable
from itertools import combinations

import pytest
from fixtures_seal import DOMAIN, MemoryRun, made, mean, seedling, wrong_notes, wrong_value

from seal_lib.errors import DataError
from seal_lib.knowledge import world
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop
from seal_lib.seedling import recipe
from seal_lib.seeds import rng


def test_populations_are_disjoint_and_whole() -> None:
    people = world.populations()
    assert {key: len(names) for key, names in people.items()} == {
        "known": 240,
        "reading": 1900,
        "learning": 900,
        "heldout": 1056,
    }
    for a, b in combinations(people.values(), 2):
        assert not set(a) & set(b)
    names = [name for group in people.values() for name in group]
    assert len(set(names)) == len(world.FIRST) * len(world.LAST) == 4096


def test_no_word_of_the_world_means_two_things() -> None:
    kinds = [world.FIRST, world.LAST, world.PLACES, *world.VALUES.values()]
    words = [word for kind in kinds for word in kind]
    assert len(set(words)) == len(words)


def test_pretraining_never_names_a_heldout_or_learning_person() -> None:
    made_by = rng("leak test")
    forbidden = {*world.populations()["heldout"], *world.populations()["learning"]}
    allowed = {*world.populations()["known"], *world.populations()["reading"]}
    first, last, seen = set(world.FIRST), set(world.LAST), set()
    for step in range(0, 4000):
        progress = step / 4000
        for text, _ in (
            recipe.note_document(made_by, progress),
            recipe.question_document(made_by, progress),
            recipe.fact_document(made_by),
        ):
            words = text.replace(".", " ").replace("?", " ").replace(",", " ").split()
            names = {f"{a} {b}" for a, b in zip(words, words[1:], strict=False) if a in first and b in last}
            seen |= names
    assert not seen & forbidden
    assert seen <= allowed and len(seen) > 1500  # the search does see names


def test_the_encoded_documents_of_training_steps_hold_no_heldout_name() -> None:
    tokenizer, settings = seedling()[1], recipe.KnowledgeRecipe()
    forbidden, first, last = set(world.populations()["heldout"]), set(world.FIRST), set(world.LAST)
    documents = 0
    for step in range(0, settings.steps, settings.steps // 25):
        for group in settings.documents(step, tokenizer).values():
            for ids, predicted in group:
                documents += 1
                assert ids[-1] == tokenizer.eos_token_id and predicted[-1]
                assert len(predicted) == len(ids) <= settings.positions
                words = tokenizer.decode(ids[:-1]).replace(".", " ").replace("?", " ").split()
                pairs = zip(words, words[1:], strict=False)
                assert not {f"{a} {b}" for a, b in pairs if a in first and b in last} & forbidden
    assert documents > 2000


def test_the_documents_of_a_step_depend_on_recipe_and_step_alone() -> None:
    tokenizer, settings = seedling()[1], recipe.KnowledgeRecipe()
    assert settings.documents(7, tokenizer) == settings.documents(7, tokenizer)
    assert settings.documents(7, tokenizer) != settings.documents(8, tokenizer)


def test_passages_are_a_function_of_their_arguments() -> None:
    few, many = world.passages("heldout", 3, seed=5), world.passages("heldout", 9, seed=5)
    assert many[:3] == few  # asking for more changes nothing before
    assert world.passages("heldout", 3, seed=6) != few
    several = many + world.passages("heldout", 9, seed=6) + world.passages("learning", 9, seed=5)
    assert len({p.id for p in several}) == 27


def test_a_passage_is_about_people_of_its_population_and_no_two_passages_share_one() -> None:
    for population in ("heldout", "learning"):
        seen: set[str] = set()
        for passage in world.passages(population, 200, seed=1):
            people = {name for name, _, _ in passage.facts}
            assert people and people <= set(world.populations()[population]) and not people & seen
            seen |= people


def test_every_question_is_answered_by_a_sentence_of_its_passage() -> None:
    for passage in world.passages("heldout", 40, seed=2):
        sentences = passage.text.split(".")
        asked = {
            t.format(n=name): (name, value)
            for name, attribute, value in passage.facts
            for t in world.WORDINGS[attribute].asked
        }
        assert len({(name, attribute) for name, attribute, _ in passage.facts}) == len(passage.facts)  # one answer each
        assert {q.answer for q in passage.questions} == {value for _, _, value in passage.facts}  # every fact is asked
        assert len({q.question for q in passage.questions}) == len(passage.questions)
        for question in passage.questions:
            name, value = asked[question.question]
            assert question.answer == value and value not in question.question
            stating = [s for s in sentences if f" {name}" in f" {s}" and f" {value}" in f" {s}"]
            assert stating and all(s.index(value) < s.index(name) for s in stating)  # value first, always


NAME = re.compile(f"({'|'.join(world.FIRST)}) ({'|'.join(world.LAST)})")


def wordings(questions: Iterable[str]) -> set[str]:
    """Questions with their person taken out."""
    return {NAME.sub("{n}", text) for text in questions}


def notes_of_pretraining(draws: int) -> str:
    """Notes by every writer and in every style that pretraining or a passage's references can hold."""
    made_by, texts = rng("notes of pretraining"), []
    for step in range(draws):
        text, silent = recipe.note_document(made_by, step / draws)
        texts.append(text[silent:])
        facts = world.draw_facts(made_by, made_by.sample(world.populations()["heldout"], 4), 8)
        texts += [world.notes(facts, made_by, style, 8) for style in world.NOTE_STYLES]
        texts.append(world.external_notes(facts, made_by))
        about_known = recipe.fact_document(made_by)[0]
        texts += [about_known] * ("Question:" not in about_known)
    passages = world.passages("heldout", 60, seed=1) + world.passages("learning", 60, seed=1)
    return "\n".join(texts + [text for passage in passages for text in passage.references.values()])


def test_no_note_has_a_wording_of_the_evaluation() -> None:
    written = notes_of_pretraining(1500)
    every = {template.partition(" {n}")[0] for w in world.WORDINGS.values() for template in w.question}
    assert all(f"- {wording} " in written for wording in every)  # the notes are looked through to their rarest form
    passages = [p for population in ("heldout", "learning") for p in world.passages(population, 60, seed=2)]
    asked = [q.question for p in passages for q in p.questions]
    asked += [q.question for _, q in world.known_questions(300)]
    assert len(wordings(asked)) == 12
    assert [
        words for words in wordings(asked) if words.partition("{n}")[0] in written
    ] == []  # not even their beginning


def test_pretraining_asks_in_the_wordings_of_the_evaluation_and_in_no_other() -> None:
    made_by = rng("questions of pretraining")
    documents = [recipe.fact_document(made_by)[0] for _ in range(1500)]
    documents += [recipe.question_document(made_by)[0] for _ in range(300)]
    asked = [line.partition("Question: ")[2] for text in documents for line in text.split("\n") if "Question: " in line]
    questions = {q.question for p in world.passages("heldout", 60, seed=2) for q in p.questions}
    assert wordings(asked) == wordings(questions)


def test_the_shipped_model_writes_no_question_of_the_evaluation_into_its_notes() -> None:
    policy, passages = Policy("untrained", *seedling()), made(12)
    outer = OuterLoop(edit_tokens=200)
    edits = write_self_edits(MemoryRun(), policy, passages, DOMAIN, outer, phase="write", seed=0, samples=4)
    questions = {q.question for p in passages for q in p.questions}
    assert sum("?" in edit.text for edit in edits) > 4  # it does write questions
    assert [edit.id for edit in edits if any(question in edit.text for question in questions)] == []


def test_references_say_what_their_name_promises() -> None:
    for passage in world.passages("heldout", 10, seed=4, facts=6):
        told = {key: world.describe_notes(text, passage) for key, text in passage.references.items()}
        assert {key: told[key]["style"] for key in ("gold", "forward", "questions", "verbatim", "remark", "half")} == {
            "gold": "forward",
            "forward": "forward",
            "questions": "questions",
            "verbatim": "verbatim",
            "remark": "remark",
            "half": "forward",
        }
        assert told["gold"]["coverage"] == told["questions"]["coverage"] == 1.0
        assert told["half"]["coverage"] == 0.5 and told["half"]["lines"] == 3
        assert told["verbatim"]["coverage"] == told["remark"]["coverage"] == 0.0


def test_the_external_writer_covers_nine_facts_in_ten_in_useful_forms_only() -> None:
    passages = world.passages("heldout", 200, seed=4)
    told = [world.describe_notes(p.references["external"], p) for p in passages]
    assert all(d["lines"] == d["forward"] + d["questions"] for d in told)
    assert mean(d["coverage"] for d in told) == pytest.approx(0.9, abs=0.02)
    share = sum(d["forward"] for d in told) / sum(d["lines"] for d in told)
    assert share == pytest.approx(0.7, abs=0.04)


def test_describe_notes_counts_by_hand() -> None:
    passage = made(1, facts=6)[0]
    (n1, a1, v1), (n2, a2, v2), (n3, a3, v3) = passage.facts[:3]
    w1, w2, w3 = (world.WORDINGS[a] for a in (a1, a2, a3))
    other = wrong_value(passage, n3, a3, v3)
    lines = [
        "- " + w1.forward[0].format(n=n1, v=v1),
        "- " + w1.forward[1].format(n=n1, v=v1),  # the same fact again covers nothing new
        "- " + w2.question[0].format(n=n2) + f" {v2}.",
        w3.passage[0].format(n=n3, v=v3),  # verbatim; the bullet is optional
        "- " + w3.forward[0].format(n=n3, v=other),  # false
        "- " + w3.question[0].format(n=n3) + f" {other}.",  # false
        "- " + world.REMARKS[1].format(n=n1),
        "",
        "- nonsense words",
    ]
    told = world.describe_notes("\n".join(lines), passage)
    assert told == {
        "style": "forward",
        "coverage": 2 / 6,
        "lines": 8,
        "forward": 2,
        "questions": 1,
        "verbatim": 1,
        "false": 2,
        "remark": 1,
        "other": 1,
    }


def test_describe_notes_of_nothing_and_of_wrong_notes() -> None:
    passage = made(1)[0]
    empty = world.describe_notes(" \n", passage)
    assert (empty["style"], empty["coverage"], empty["lines"]) == ("empty", 0.0, 0)
    wrong = world.describe_notes(wrong_notes(passage), passage)
    assert (wrong["style"], wrong["coverage"], wrong["false"]) == ("false", 0.0, 6)


def test_a_fact_of_another_passage_covers_nothing() -> None:
    one, other = made(2)
    assert world.describe_notes(other.references["gold"], one)["coverage"] == 0.0


def test_untrained_note_styles_come_in_their_proportions() -> None:
    drawn = rng("style test")
    facts = [world.Fact(*f) for f in made(1)[0].facts]
    counts = dict.fromkeys(world.NOTE_STYLES, 0)
    for _ in range(3000):
        styles = {style_of(line, facts) for line in world.notes(facts, drawn).split("\n")}
        counts["mixed" if len(styles) > 1 else styles.pop()] += 1
    # a mixed note of one or two lines may look pure, so mixed is seen a little less often than drawn
    for style in ("verbatim", "remark", "forward", "questions"):
        assert counts[style] / 3000 == pytest.approx(world.NOTE_STYLES[style], abs=0.035)
    assert sum(world.NOTE_STYLES.values()) == pytest.approx(1)


def style_of(line: str, facts: list[world.Fact]) -> str:
    line = line.removeprefix("- ")
    if "?" in line:
        return "questions"
    if any(line == t.format(n=f.name) for f in facts for t in world.REMARKS):
        return "remark"
    return "forward" if any(line.startswith(f.name) for f in facts) else "verbatim"


def test_more_than_the_world_holds_is_refused() -> None:
    with pytest.raises(DataError, match="1057 .*1056 people of 'heldout'"):
        world.passages("heldout", 1057)
    with pytest.raises(DataError, match="facts: 99"):
        world.passages("heldout", 1, facts=99)


def test_every_word_of_the_world_is_one_token_of_the_shipped_tokenizer() -> None:
    tokenizer = seedling()[1]
    words = [*world.FIRST, *world.LAST, *world.PLACES, *(v for values in world.VALUES.values() for v in values)]
    assert [word for word in words if len(tokenizer(" " + word)["input_ids"]) != 1] == []


def test_the_recipe_gives_every_word_one_token_and_any_text_some() -> None:
    tokenizer = recipe.KnowledgeRecipe().tokenizer()
    words = [*world.FIRST, *world.LAST, *world.PLACES, *(v for values in world.VALUES.values() for v in values)]
    assert [word for word in words if len(tokenizer(" " + word)["input_ids"]) != 1] == []
    assert tokenizer.decode(tokenizer("北京 \0 é")["input_ids"]) == "北京 \0 é"
    assert len(tokenizer) <= recipe.KnowledgeRecipe().vocabulary


def test_the_shipped_model_has_the_shape_of_the_recipe() -> None:
    model, tokenizer = seedling()
    settings, config = recipe.KnowledgeRecipe(), model.config
    assert len(tokenizer) == config.vocab_size <= settings.vocabulary
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (
        settings.hidden,
        settings.layers,
        settings.heads,
        settings.mlp,
    )


def test_known_questions_ask_what_pretraining_taught() -> None:
    facts = {(f.name, f.value) for f in world.known_facts()}
    asked = world.known_questions(50)
    assert asked == world.known_questions(50) and len({q for _, q in asked}) == 50
    for title, question in asked:
        name = next(n for n in world.populations()["known"] if n in question.question)
        assert (name, question.answer) in facts and title == world.home(name)
