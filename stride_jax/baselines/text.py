"""Text overlap: TF-IDF cosine and BM25. Inputs are arrays of strings."""

import dataclasses
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from stride_jax.baselines.model import Model
from stride_jax.data import Examples


def _texts(examples: Examples) -> list[str]:
    if examples.inputs.dtype.kind not in "UO":
        raise ValueError(
            f"text overlap needs inputs that are strings, not {examples.inputs.dtype}: leave "
            "tf-idf and bm25 out for other data"
        )
    return [str(text) for text in examples.inputs]


@dataclasses.dataclass(frozen=True)
class TfidfSettings:
    """TF-IDF.

    Attributes:
      ngrams: longest run of words that is a term.
    """

    ngrams: int = 2


def fit_tfidf(model: Model | None, train: Examples, settings: TfidfSettings) -> tuple[Any, Any]:
    """The vectoriser and the training texts' unit vectors (scikit-learn)."""
    vectoriser = TfidfVectorizer(ngram_range=(1, settings.ngrams), sublinear_tf=True)
    return vectoriser, vectoriser.fit_transform(_texts(train))


def score_tfidf(
    state: tuple[Any, Any],
    model: Model | None,
    train: Examples,
    query: Examples,
    settings: TfidfSettings,
) -> np.ndarray:
    """Cosine of TF-IDF vectors, `[Q, N]` float32."""
    vectoriser, rows = state
    return (vectoriser.transform(_texts(query)) @ rows.T).toarray().astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Bm25Settings:
    """BM25.

    Attributes:
      k1, b: saturation of term counts and length normalisation.
    """

    k1: float = 1.5
    b: float = 0.75


def fit_bm25(model: Model | None, train: Examples, settings: Bm25Settings) -> Any:
    """The index (package bm25s, extra `text`)."""
    import bm25s

    index = bm25s.BM25(k1=settings.k1, b=settings.b)
    index.index(bm25s.tokenize(_texts(train), show_progress=False), show_progress=False)
    return index


def score_bm25(
    state: Any, model: Model | None, train: Examples, query: Examples, settings: Bm25Settings
) -> np.ndarray:
    """BM25 score of each training text for the query's words, `[Q, N]` float32."""
    import bm25s

    tokens = bm25s.tokenize(_texts(query), return_ids=False, show_progress=False)
    return np.stack([state.get_scores(words) for words in tokens]).astype(np.float32)
