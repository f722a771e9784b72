"""Text overlap: TF-IDF cosine and BM25, with token ids as words."""

import dataclasses
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from stride_jax.baselines.model import Model
from stride_jax.data import Examples

# scikit-learn's own pattern leaves out words of one character.
_WORD = r"(?u)\b\w+\b"


def _texts(examples: Examples) -> list[str]:
    """Sequences of token ids as texts whose words are the ids."""
    inputs = examples.inputs
    if inputs.dtype.kind != "i" or inputs.ndim != 2:
        raise ValueError(
            f"text overlap needs token ids [N, T], not {inputs.dtype}{list(inputs.shape)}: leave "
            "out tf-idf and bm25 for other data"
        )
    return [" ".join(map(str, row)) for row in inputs.tolist()]


@dataclasses.dataclass(frozen=True)
class TfidfSettings:
    """TF-IDF.

    Attributes:
      ngrams: words of the longest terms.
    """

    ngrams: int = 2


def fit_tfidf(model: Model | None, train: Examples, settings: TfidfSettings) -> tuple[Any, Any]:
    """The vectoriser and the training texts' unit vectors (scikit-learn)."""
    vectoriser = TfidfVectorizer(
        ngram_range=(1, settings.ngrams), sublinear_tf=True, token_pattern=_WORD
    )
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
    index.index(_words(train), show_progress=False)
    return index


def _words(examples: Examples) -> list[list[str]]:
    import bm25s

    tokenised = bm25s.tokenize(
        _texts(examples), token_pattern=_WORD, return_ids=False, show_progress=False
    )
    return [[str(word) for word in words] for words in tokenised]


def score_bm25(
    state: Any, model: Model | None, train: Examples, query: Examples, settings: Bm25Settings
) -> np.ndarray:
    """BM25 score of each training text for the query's words, `[Q, N]` float32."""
    del model, train, settings
    return np.stack([state.get_scores(words) for words in _words(query)]).astype(np.float32)
