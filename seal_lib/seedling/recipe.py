"""The recipe of the knowledge seedling: tokenizer, documents and curriculum.

Two kinds of document are mixed in every step:

* *facts* about the ``known`` population (statements, notes and question forms). They give the model its prior
  knowledge, and the transfer from statements to questions that makes finetuning on notes useful.
* *reading*: a passage about people of the ``reading`` population with freshly drawn facts, followed by notes in some
  style or by questions with answers. The loss is on the notes or the questions and answers only, since the facts of the
  passage cannot be predicted.

Passages grow from short to long over the first fifth of training. The training itself is in ``growth``.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib.knowledge import prompts, world
from seal_lib.seedling import growth
from seal_lib.seeds import rng as seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDING = prompts.load("seedling")  # the model is trained on the same prompts that it is later asked with


@dataclass(frozen=True)
class KnowledgeRecipe(growth.Recipe):
    """Everything that determines the weights; written into the model card."""

    note_documents: int = 30
    question_documents: int = 22
    fact_documents: int = 64

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return a byte-level BPE tokenizer trained on the world: one token per word of it; other text encodes too."""
        from tokenizers import pre_tokenizers

        rng = random.Random(0)
        words = world.FIRST + world.LAST + world.PLACES + [v for values in world.VALUES.values() for v in values]
        corpus = ["x " + " ".join(words)] * 4000
        for _ in range(4000):
            corpus += [document(rng)[0] for document in (fact_document, note_document, question_document)]
        return growth.train_tokenizer(corpus, self.vocabulary, pre_tokenizers.ByteLevel(add_prefix_space=False))

    def documents(self, step: int, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[growth.EncodedDocument]]:
        rng, progress = seeded("seedling", self.seed, step), step / self.steps
        texts = {
            "notes": [note_document(rng, progress) for _ in range(self.note_documents)],
            "questions": [question_document(rng, progress) for _ in range(self.question_documents)],
            "facts": [fact_document(rng) for _ in range(self.fact_documents)],
        }
        return {kind: [_encode(tokenizer, *document) for document in group] for kind, group in texts.items()}

    def sources(self) -> list[Path]:
        return [Path(__file__), Path(world.__file__)]


def fact_document(rng: random.Random) -> tuple[str, int]:
    """Return a document about a known person: (text, length in characters of the part without loss)."""
    fact = rng.choice(world.known_facts())
    head, kind = world.home(fact.name), rng.random()
    if kind < 0.35:
        return f"{head}\n{world.note(fact, 'forward', rng)}", 0
    if kind < 0.5:
        sentence = world.say(fact, "passage", rng)
        return f"{head}\n{sentence if rng.random() < 0.5 else '- ' + sentence}", 0
    if kind < 0.6:
        return f"{head}\n{world.note(fact, 'questions', rng)}", 0
    return prompts.fill(_WORDING.answer, title=head, question=world.say(fact, "asked", rng)) + " " + fact.value, 0


def _read(rng: random.Random, progress: float, alike: float) -> tuple[list[world.Fact], str, str]:
    """Return facts, title and text of a passage to read: at most 2 facts at first, up to 8 from a fifth of training on.

    With probability ``alike`` only two attributes occur. Then several people have a birthplace, for example, and only
    the name tells whose is asked for.
    """
    facts = rng.randint(1, 2 + round(6 * min(1.0, 5 * progress)))
    attributes = rng.sample(world.ATTRIBUTES, 2) if rng.random() < alike else world.ATTRIBUTES
    people = rng.randint(-(-facts // len(attributes)), min(4, facts))
    drawn = world.draw_facts(rng, rng.sample(world.populations()["reading"], people), facts, attributes)
    return drawn, world.title(rng.choice(world.PLACES)), world.passage_text(drawn, rng)


def note_document(rng: random.Random, progress: float = 1.0) -> tuple[str, int]:
    """Return a passage followed by notes in some style: (text, length in characters of the part without loss)."""
    drawn, title, text = _read(rng, progress, alike=0.3)
    prompt = prompts.fill(_WORDING.self_edit, title=title, passage=text)
    return prompt + world.notes(drawn, rng), len(prompt)


def question_document(rng: random.Random, progress: float = 1.0) -> tuple[str, int]:
    """Return a passage followed by up to six questions with answers: (text, length of the part without loss)."""
    drawn, title, text = _read(rng, progress, alike=0.5)
    asked = rng.sample(drawn, min(6, len(drawn)))
    head, _, tail = _WORDING.answer_in_context.partition("Question:")
    prompt = prompts.fill(head, title=title, passage=text)
    pairs = [f"{prompts.fill('Question:' + tail, question=world.say(f, 'asked', rng))} {f.value}" for f in asked]
    return prompt + "\n".join(pairs), len(prompt)


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str, silent: int) -> growth.EncodedDocument:
    """Return the token ids with EOS, and which of them are in the loss: those after the first ``silent`` characters."""
    head = tokenizer(text[:silent])["input_ids"] if silent else []
    tail = tokenizer(text[silent:])["input_ids"] + [tokenizer.eos_token_id]
    return head + tail, [False] * len(head) + [True] * len(tail)
