"""The recipe of the grid seedling: tokenizer and documents.

There are two kinds of document:

* *rules*: demonstrations of one seen rule, with the loss on the outputs from the second one on (the first cannot be
  known). In a few documents (``whole``) the loss is on every token, so that the model can also predict grids, and in a
  few (``large``) the grids are enlarged or repeated, so that it has seen other sizes.
* *configurations*: the demonstrations of a puzzle followed by a random training configuration: every combination of
  switches, strategy, rate and epochs is equally likely. This is the untrained policy: it writes valid JSON and knows
  nothing of which configurations work.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib.arc import prompts, world
from seal_lib.arc.augment import SWITCHES, family
from seal_lib.arc.grids import question_text
from seal_lib.arc.self_edits import STRATEGIES, Config
from seal_lib.arc.tasks import Pair, Task
from seal_lib.seedling import growth
from seal_lib.seeds import rng as seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDING = prompts.load("seedling")  # the model is trained on the same prompts that it is later asked with

#: the learning rates and epochs of random configurations, and thus of the untrained policy
CONFIG_RATES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CONFIG_EPOCHS = (1, 2, 3, 4, 6, 8)
#: (text, True if its tokens are in the loss)
Piece = tuple[str, bool]
_LARGER = (*family("use_size_augmentations"), *family("use_repeat_augmentations"))


@dataclass(frozen=True)
class GridRecipe(growth.Recipe):
    """Everything that determines the weights; written into the model card."""

    hidden: int = 64
    mlp: int = 192
    vocabulary: int = 512
    rope_theta: float = 500.0
    steps: int = 3000
    lr: float = 3e-3
    rule_documents: int = 32
    whole_documents: int = 4
    large_documents: int = 2
    config_documents: int = 4
    demonstrations: int = 5

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return a byte-level BPE tokenizer with one token per cell and one per word of a configuration."""
        from tokenizers import Regex, pre_tokenizers

        draws = random.Random(0)
        corpus = []
        for _ in range(1500):
            corpus += [rule_text(rule_pairs(draws, 3)), "configuration:\n" + draw_config(draws).text()]
        words = Regex(r"\]\n \[|\d| -> | (?=\d)| ?[\p{L}_]+|\n| ?[^\s\p{L}\p{N}_]+|\s+")
        split = pre_tokenizers.Split(words, "isolated")
        pieces = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        return growth.train_tokenizer(corpus, self.vocabulary, pieces)

    def documents(self, step: int, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[growth.EncodedDocument]]:
        draws, count = seeded("grid seedling", self.seed, step), self.demonstrations
        kinds = {
            "rules": [rule_document(draws, count) for _ in range(self.rule_documents)],
            "whole": [rule_document(draws, count, whole=True) for _ in range(self.whole_documents)],
            "large": [rule_document(draws, count, large=True) for _ in range(self.large_documents)],
            "configurations": [config_document(draws) for _ in range(self.config_documents)],
        }
        return {kind: [_encode(tokenizer, pieces) for pieces in documents] for kind, documents in kinds.items()}

    def weight(self, kind: str) -> float:
        return {"rules": 1.0, "whole": 0.1, "large": 0.1, "configurations": 0.25}[kind]

    def sources(self) -> list[Path]:
        return [Path(__file__), Path(world.__file__)]


def rule_pairs(draws: random.Random, count: int) -> list[Pair]:
    """Return pairs of one seen rule; in half of the cases with four different colours each, as in the tasks."""
    rule, distinct = draws.choice(world.populations()["seen"]), draws.random() < 0.5
    return [world.draw_pair(rule, draws, distinct) for _ in range(count)]


def rule_text(pairs: list[Pair]) -> str:
    return "".join(question_text(pair.input) + _WORDING.answer(pair.output) + "\n" for pair in pairs)


def draw_config(draws: random.Random) -> Config:
    switches = tuple(switch for switch in SWITCHES if draws.random() < 0.5)
    return Config(switches, draws.choice(list(STRATEGIES)), draws.choice(CONFIG_RATES), draws.choice(CONFIG_EPOCHS))


def rule_document(draws: random.Random, count: int, large: bool = False, whole: bool = False) -> list[Piece]:
    """Return demonstrations of one rule as pieces.

    ``whole``: the loss is on every token, not on the outputs alone. ``large``: the grids are enlarged or repeated.
    """
    pairs = rule_pairs(draws, count)
    if large:
        pairs = list(map(draws.choice(_LARGER).pair, pairs))
    pieces = []
    for number, pair in enumerate(pairs):
        answer = (_WORDING.answer(pair.output), whole or number > 0)
        pieces += [(question_text(pair.input), whole), answer, ("\n", whole)]
    return pieces


def config_document(draws: random.Random) -> list[Piece]:
    """Return a puzzle's self-edit prompt and a random configuration; half of the puzzles follow no rule at all."""
    count = draws.randint(2, 4)
    pairs = rule_pairs(draws, count)
    if draws.random() < 0.5:
        pairs = [Pair(world.draw_grid(draws), world.draw_grid(draws, distinct=False)) for _ in range(count)]
    task = Task("made", tuple(pairs), (pairs[0].input,))
    return [(_WORDING.write(task)[1], False), (draw_config(draws).text(), True), ("<eos>", True)]


def _encode(tokenizer: "PreTrainedTokenizerBase", pieces: list[Piece]) -> growth.EncodedDocument:
    """Tokenise each piece by itself, as prompts and answers are tokenised later."""
    tokens = tokenizer([text for text, _ in pieces])["input_ids"]
    ids = [token for several in tokens for token in several]
    return ids, [predicted for several, (_, predicted) in zip(tokens, pieces, strict=True) for _ in several]
