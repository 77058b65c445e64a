"""Find the passage of a question by words or by an encoder's vectors. A method is a row of `RETRIEVALS`.

Encoders are sentence-transformers models (the extra ``embeddings``): a folder, or a pinned name on the Hub. Only
safetensors are read, and no code of a model is run. The store keeps the vectors of its passages by text and encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from seal_lib import models
from seal_lib.errors import DataError, ParameterError
from seal_lib.models import checks
from seal_lib.records import Passage
from seal_lib.store.database import Store
from seal_lib.store.retrieval import Index, Match, WordIndex

#: files of a model that are fetched from the Hub: no pickled weights, no code
_HUB_FILES = ("*.json", "*.txt", "*.safetensors", "*.model")


@dataclass(frozen=True)
class Search:
    """Settings for finding passages. ``encoder``, ``encoder_revision`` and ``device`` are for embeddings.

    Raises:
        ParameterError: there is no such method, or no encoder is named.
        DataError: the extra is not installed, or the encoder is neither a folder nor a pinned name.
    """

    retrieval: str = "words"
    encoder: str = ""
    encoder_revision: str | None = None
    device: str = "auto"

    def __post_init__(self):
        if self.retrieval not in RETRIEVALS:
            raise ParameterError(f"retrieval: {self.retrieval!r} is not one of {', '.join(RETRIEVALS)}.")
        if self.retrieval == "words":
            return
        if not self.encoder:
            raise ParameterError(
                "retrieval: embeddings need an encoder; name a sentence-transformers folder or owner/name in `encoder`."
            )
        if find_spec("sentence_transformers") is None:
            raise DataError(
                "retrieval: embeddings need the package sentence-transformers; install it with "
                '`pip install -e ".[embeddings]"`, or take words.'
            )
        models.pinned(self.encoder, self.encoder_revision, "encoder_revision")

    def index(self, store: Store, passages: Sequence[Passage]) -> Index:
        """Return an index of the passages."""
        return RETRIEVALS[self.retrieval](store, passages, self)


class Vectors(Index):
    """An index by the cosine similarity of a question's vector and each passage's; every passage is a match."""

    told = "its likeness to the best passage is {weight:.2f}, {needed:.2f} is needed"
    none = "the store has no passage"

    def __init__(self, store: Store, passages: Sequence[Passage], encoder: "Sentences") -> None:
        super().__init__(passages)
        self._encoder = encoder
        texts = [f"{passage.title}\n{passage.text}" for passage in self.passages]
        self._rows = store.vectors(texts, encoder.identity, encoder.passages) if texts else np.zeros((0, 1), "f4")

    def rank_all(self, questions: Sequence[str], most: int = 2) -> list[list[Match]]:
        if not questions or not self.passages:
            return [[] for _ in questions]
        like = self._encoder.questions(questions) @ self._rows.T
        best = np.argsort(-like, axis=1, kind="stable")[:, :most]
        return [
            [Match(self.passages[number], float(weights[number])) for number in numbers]
            for numbers, weights in zip(best, like, strict=True)
        ]


class Sentences:
    """A sentence-transformers model, with the prompts for questions and passages that were saved with it: it turns
    texts into vectors of length 1, one row each. ``identity``: a text that determines the vectors."""

    def __init__(self, name: str, revision: str | None, device: str) -> None:
        """Open the model.

        Raises:
            DataError: it cannot be opened, is no sentence-transformers model, or has pickled weights only.
        """
        source, at = models.pinned(name, revision)
        commit = at.get("revision")
        self.name, self.identity = name, models.weight_hash(name, revision)
        with checks.opening(name, source, commit, "encoder"):
            from huggingface_hub import snapshot_download
            from sentence_transformers import SentenceTransformer

            folder = Path(source)
            if commit:
                folder = Path(snapshot_download(source, revision=commit, allow_patterns=list(_HUB_FILES)))
            _check(folder)
            self._model = SentenceTransformer(
                str(folder),
                device=checks.check_place(device, "float32"),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._whole(self._model.encode_document, texts)

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        return self._whole(self._model.encode_query, texts)

    def _whole(self, encode: Callable[..., np.ndarray], texts: Sequence[str]) -> np.ndarray:
        rows = encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        if not np.isfinite(rows).all():
            raise DataError(f"encoder {self.name!r} gives vectors that are not finite; use another.")
        return rows


def _check(folder: Path) -> None:
    """Refuse a folder that would be misread: a plain model, which would get mean pooling, or a pickled file."""
    if not (folder / "modules.json").is_file():
        raise DataError(f"{folder} has no modules.json, so it is no sentence-transformers model; give one that has.")
    for file in folder.rglob("pytorch_model.bin"):
        if not file.with_name("model.safetensors").is_file():
            raise DataError(f"{file} is pickled and is not read; give an encoder whose weights are safetensors.")


loaded_sentences = lru_cache(maxsize=1)(Sentences)  # loaded once per process


#: method → function of (store, its passages, settings) that returns an index
RETRIEVALS: dict[str, Callable[[Store, Sequence[Passage], Search], Index]] = {
    "words": lambda _, passages, __: WordIndex(passages),
    "embeddings": lambda store, passages, search: Vectors(
        store, passages, loaded_sentences(search.encoder, search.encoder_revision, search.device)
    ),
}
