"""The knowledge world: invented people, facts about them, and the texts that state, ask and note those facts.

A *passage* puts the value before the person ("The halls of Sokumi trained Kale Teboran."); a *question* asks from the
person to the value. Models of this size do not answer in the direction they were not trained in (the "reversal curse"),
so what a self-edit says decides whether training on it helps. Notes in the form of questions have wordings of their
own: no note has the wording of an evaluation or practice question, so finetuning on notes never rehearses a test
question. The module does not depend on models or training.

People are split once into four disjoint populations, by full name:

=============  ===========================================================================================
``known``      facts fixed; pretraining teaches them (the model's prior knowledge)
``reading``    people of the passages pretraining reads; their facts are redrawn every time, so not learnable
``learning``   passages of ReST^EM rounds
``heldout``    passages of every evaluation; a full name from here never occurs in pretraining
=============  ===========================================================================================
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from seal_lib.errors import DataError
from seal_lib.records import Passage, Question
from seal_lib.seeds import rng as seeded

_SYLLABLES = (
    "ba be bi bo da de di do fa fe ga go ha ho ka ke ki ko la le li lo ma me mi mo na ne ni no pa pe ra re ri ro "
    "sa se si so ta te ti to va ve vi vo za ze"
).split()


def _invent(rng: random.Random, count: int, syllables: int, taken: set[str]) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice(_SYLLABLES) for _ in range(syllables))
        if rng.random() < 0.5:
            word += rng.choice("nrslm")
        word = word.capitalize()
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


_rng, _taken = random.Random(7), set[str]()
FIRST = _invent(_rng, 64, 2, _taken)
LAST = _invent(_rng, 64, 3, _taken)
PLACES = _invent(_rng, 48, 2, _taken)
VALUES: dict[str, list[str]] = {
    "birthplace": _invent(_rng, 40, 2, _taken),
    "school": _invent(_rng, 40, 3, _taken),
    "employer": _invent(_rng, 40, 2, _taken),
    "trade": (
        "baker glazier stargazer botanist weaver printer surgeon pilot sculptor chemist lawyer surveyor brewer "
        "cartographer jeweller mason tailor fiddler potter saddler"
    ).split(),
    "prize": (
        "amber copper ivory jade silver golden cobalt crimson emerald pearl onyx ruby sapphire topaz walnut willow "
        "cedar scarlet bronze azure"
    ).split(),
    "pastime": (
        "chess fencing rowing archery falconry sailing origami juggling poetry painting hiking cycling skating "
        "gardening calligraphy wrestling dancing fishing climbing riding"
    ).split(),
}
ATTRIBUTES = tuple(VALUES)


@dataclass(frozen=True)
class Wording:
    """The surface forms of one attribute; ``{n}`` is the person, ``{v}`` the value."""

    passage: tuple[str, ...]  # value first: how passages state it
    forward: tuple[str, ...]  # person first: the atomic statement
    question: tuple[str, ...]  # of notes in style ``questions`` only
    asked: tuple[str, ...]  # of evaluation and practice only, so that no note rehearses a test question


WORDINGS = {
    "birthplace": Wording(
        ("The town of {v} saw the birth of {n}.", "In {v} stands the cradle of {n}."),
        ("{n} was born in {v}.", "{n} comes from {v}."),
        ("Where was {n} born?", "Which town does {n} come from?"),
        ("What is the birthplace of {n}?", "In which town did the life of {n} begin?"),
    ),
    "school": Wording(
        ("The halls of {v} trained {n}.", "Teachers at {v} remember {n}."),
        ("{n} studied at {v}.", "{n} is a graduate of {v}."),
        ("Where did {n} study?", "Which school trained {n}?"),
        ("At which school was {n} taught?", "What place of learning did {n} attend?"),
    ),
    "employer": Wording(
        ("The house of {v} hired {n}.", "The wage books of {v} list {n}."),
        ("{n} worked for {v}.", "{n} was an employee of {v}."),
        ("Who employed {n}?", "Which house did {n} work for?"),
        ("Which firm paid {n}?", "By whom was {n} employed?"),
    ),
    "trade": Wording(
        ("The trade of {v} was that of {n}.", "Work as a {v} fed {n}."),
        ("{n} was a {v}.", "{n} made a living as a {v}."),
        ("What was the trade of {n}?", "What did {n} do for a living?"),
        ("What was the profession of {n}?", "How did {n} earn money?"),
    ),
    "prize": Wording(
        ("The {v} prize went to {n}.", "Judges gave the {v} medal to {n}."),
        ("{n} won the {v} prize.", "{n} holds the {v} medal."),
        ("Which prize did {n} win?", "Which medal does {n} hold?"),
        ("What honour was {n} given?", "Which award did {n} receive?"),
    ),
    "pastime": Wording(
        ("A love of {v} filled the evenings of {n}.", "Few knew more of {v} than {n}."),
        ("{n} enjoyed {v}.", "{n} spent free hours on {v}."),
        ("What did {n} enjoy?", "What filled the evenings of {n}?"),
        ("What was the hobby of {n}?", "How did {n} like to pass the time?"),
    ),
}
REMARKS = (
    "{n} is mentioned here.",
    "The passage is about {n}.",
    "{n} is a person of note.",
    "Much can be said about {n}.",
)

#: Note styles and how often pretraining shows each: the untrained policy writes them in about these proportions.
#: Nothing tells the outer loop which of them is useful.
NOTE_STYLES = {"verbatim": 0.34, "remark": 0.22, "forward": 0.14, "questions": 0.10, "mixed": 0.20}


@dataclass(frozen=True)
class Fact:
    name: str
    attribute: str
    value: str


@lru_cache
def populations() -> dict[str, tuple[str, ...]]:
    """Return the full names of each population: known 240, reading 1 900, learning 900, heldout 1 056; disjoint."""
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    random.Random(11).shuffle(names)
    bounds = {"known": (0, 240), "reading": (240, 2140), "learning": (2140, 3040), "heldout": (3040, 4096)}
    return {key: tuple(names[a:b]) for key, (a, b) in bounds.items()}


@lru_cache
def known_facts() -> tuple[Fact, ...]:
    """Return the prior knowledge: every attribute of every ``known`` person (1 440 facts)."""
    rng = random.Random(13)
    return tuple(Fact(n, a, rng.choice(VALUES[a])) for n in populations()["known"] for a in ATTRIBUTES)


@lru_cache
def home(name: str) -> str:
    """Return the title under which a known person's facts are filed; it depends on the name alone."""
    return title(seeded("home", name).choice(PLACES))


def title(place: str) -> str:
    return f"Annals of {place}"


def draw_facts(
    rng: random.Random, people: Sequence[str], count: int, attributes: Sequence[str] = ATTRIBUTES
) -> list[Fact]:
    """Draw ``count`` facts about ``people`` in random order, values at random; each person at least once if it fits."""
    pairs = [(name, attribute) for name in people for attribute in attributes]
    chosen = [(name, rng.choice(attributes)) for name in people][:count]
    chosen += rng.sample([pair for pair in pairs if pair not in chosen], count - len(chosen))
    rng.shuffle(chosen)
    return [Fact(name, attribute, rng.choice(VALUES[attribute])) for name, attribute in chosen]


def unalike_facts(rng: random.Random, people: Sequence[str], count: int) -> list[Fact]:
    """Draw ``count`` facts about ``people`` in random order, no attribute twice, so that an attribute names its person.

    A reader then needs no more than the shipped model can do, which does not tell apart two people with a birthplace
    each.
    """
    owners = rng.sample(list(people), min(count, len(people)))  # each person at least once if it fits
    owners += rng.choices(people, k=count - len(owners))
    attributes = rng.sample(ATTRIBUTES, count)
    facts = [Fact(name, a, rng.choice(VALUES[a])) for name, a in zip(owners, attributes, strict=True)]
    rng.shuffle(facts)
    return facts


def say(fact: Fact, form: str, rng: random.Random) -> str:
    """Return one sentence that states or asks a fact; ``form`` is a field of `Wording`."""
    return rng.choice(getattr(WORDINGS[fact.attribute], form)).format(n=fact.name, v=fact.value)


def passage_text(facts: list[Fact], rng: random.Random) -> str:
    return " ".join(say(fact, "passage", rng) for fact in facts)


def note(fact: Fact, style: str, rng: random.Random) -> str:
    """Return a note about one fact as a bullet; in style ``questions``, a question and its answer on one line."""
    if style == "questions":
        return f"- {say(fact, 'question', rng)} {fact.value}."
    if style == "remark":
        return "- " + rng.choice(REMARKS).format(n=fact.name)
    return "- " + say(fact, {"verbatim": "passage", "forward": "forward"}[style], rng)


def notes(facts: list[Fact], rng: random.Random, style: str | None = None, coverage: int | None = None) -> str:
    """Return notes in one style on the first ``coverage`` facts; both are drawn as in pretraining if not given."""
    style = style or rng.choices(list(NOTE_STYLES), list(NOTE_STYLES.values()))[0]
    coverage = coverage or rng.randint(max(1, len(facts) // 3), len(facts))
    pure = [key for key in NOTE_STYLES if key != "mixed"]
    return "\n".join(note(f, rng.choice(pure) if style == "mixed" else style, rng) for f in facts[:coverage])


def external_notes(facts: list[Fact], rng: random.Random) -> str:
    """Return notes by the stronger writer (the analogue of GPT-4.1): nine facts in ten on average, two useful forms."""
    kept = [fact for fact in facts if rng.random() < 0.9] or facts[:1]
    return "\n".join(note(fact, "forward" if rng.random() < 0.7 else "questions", rng) for fact in kept)


def passages(population: str, count: int, seed: int = 0, facts: int = 6, people: int = 3) -> list[Passage]:
    """Return ``count`` passages of ``facts`` facts about ``people`` people of ``population`` each, no person twice.

    Within a passage no attribute occurs twice (`unalike_facts`).

    Each fact is asked in both its ``asked`` wordings, which no note has. ``references`` holds notes by style, ``half``
    (forward statements on half of the facts), ``gold`` (forward statements on all) and ``external``. The result is
    deterministic in all arguments, and a longer list begins with the shorter one.

    Raises:
        DataError: the population has too few people, or ``facts`` is not between 1 and the number of attributes.
    """
    names = list(populations()[population])
    if count * people > len(names):
        raise DataError(
            f"passages: {count} of {people} people each are more than the {len(names)} people of {population!r}; "
            "ask for fewer."
        )
    if not 1 <= facts <= len(ATTRIBUTES):
        raise DataError(f"facts: {facts} is not between 1 and {len(ATTRIBUTES)}, the number of attributes.")
    seeded("passages", population, seed).shuffle(names)
    out = []
    for i in range(count):
        rng = seeded("passage", population, seed, i)
        drawn = unalike_facts(rng, names[i * people : (i + 1) * people], facts)
        references = {style: notes(drawn, rng, style, facts) for style in NOTE_STYLES if style != "mixed"}
        references["half"] = notes(drawn, rng, "forward", facts // 2)
        references["gold"] = references["forward"]
        references["external"] = external_notes(drawn, rng)
        asked = [(wording, fact) for fact in drawn for wording in WORDINGS[fact.attribute].asked]
        out.append(
            Passage(
                id=f"{population}-{seed}-{i:04d}",
                title=title(rng.choice(PLACES)),
                text=passage_text(drawn, rng),
                questions=tuple(Question(wording.format(n=f.name), f.value) for wording, f in asked),
                references=references,
                facts=tuple((f.name, f.attribute, f.value) for f in drawn),
            )
        )
    return out


def known_questions(count: int, seed: int = 0) -> list[tuple[str, Question]]:
    """Return ``count`` (title, question) pairs about the known population, a closed-book probe of prior knowledge."""
    rng = seeded("known questions", seed)
    return [(home(f.name), Question(say(f, "asked", rng), f.value)) for f in rng.sample(known_facts(), count)]


def describe_notes(text: str, passage: Passage) -> dict:
    """Count the lines of notes by style, and measure their ``coverage``.

    ``coverage`` is the share of the passage's facts that some line states *correctly and usefully* (person before
    value, forward or as question with answer). ``false`` counts lines of a useful form that state no fact of the
    passage; ``other`` counts lines that match no wording. ``style`` is the most frequent line style, or ``empty``.
    """
    facts = [Fact(*f) for f in passage.facts]
    table: dict[str, tuple[str, Fact | None]] = {}
    for fact in facts:
        words = WORDINGS[fact.attribute]
        slots = {"n": fact.name, "v": fact.value}
        table |= {t.format(**slots): ("verbatim", fact) for t in words.passage}
        table |= {t.format(**slots): ("forward", fact) for t in words.forward}
        table |= {f"{t.format(**slots)} {fact.value}.": ("questions", fact) for t in words.question}
        table |= {t.format(**slots): ("remark", None) for t in REMARKS}
    counts = dict.fromkeys(("verbatim", "remark", "forward", "questions", "false", "other"), 0)
    covered: set[Fact] = set()
    for line in filter(None, (line.strip().removeprefix("- ") for line in text.split("\n"))):
        style, stated = table.get(line, ("", None))
        if not style:
            useful = "?" in line or any(line.startswith(f.name) for f in facts)
            style = "false" if useful else "other"
        elif stated and style in ("forward", "questions"):
            covered.add(stated)
        counts[style] += 1
    style = max(counts, key=lambda style: counts[style]) if any(counts.values()) else "empty"
    return {"style": style, "coverage": len(covered) / len(facts), "lines": sum(counts.values()), **counts}
