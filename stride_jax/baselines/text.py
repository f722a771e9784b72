"""Text overlap: TF-IDF cosine, BM25 and DSIR, with token ids as words."""

import dataclasses
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer

from stride_jax.baselines.model import Model
from stride_jax.data import Examples
from stride_jax.sequences import token_lists

# scikit-learn's own pattern leaves out words of one character.
_WORD = r"(?u)\b\w+\b"


def _texts(examples: Examples) -> list[str]:
    """Sequences of token ids as texts whose words are the ids.

    Padding is left out: the mark of a start again and again is a word that speaks of a length.
    """
    lists = token_lists(examples, "text overlap (tf-idf, bm25, dsir)")
    return [" ".join(map(str, tokens.tolist())) for tokens in lists]


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


@dataclasses.dataclass(frozen=True)
class DsirSettings:
    """DSIR: Xie et al., Data Selection for Language Models via Importance Resampling, 2023.

    Attributes:
      ngrams: words of the longest terms; theirs 2.
      buckets: that terms are hashed into; theirs 10,000.
      smoothing: added to a query's counts, as a share of the training set's frequencies: of one
        short query most buckets are empty.
    """

    ngrams: int = 2
    buckets: int = 10_000
    smoothing: float = 1.0


def _counts(examples: Examples, settings: DsirSettings) -> Any:
    hashing = HashingVectorizer(
        ngram_range=(1, settings.ngrams), n_features=settings.buckets, token_pattern=_WORD,
        alternate_sign=False, norm=None, dtype=np.float64,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return hashing.transform(_texts(examples))


def fit_dsir(model: Model | None, train: Examples, settings: DsirSettings) -> tuple[Any, Any]:
    """Hashed counts of the training texts `[N, bucket]`, and frequencies of the buckets."""
    counts = _counts(train, settings)
    total = np.asarray(counts.sum(axis=0)).ravel() + 1
    return counts, total / total.sum()


def score_dsir(
    state: tuple[Any, Any],
    model: Model | None,
    train: Examples,
    query: Examples,
    settings: DsirSettings,
) -> np.ndarray:
    """Log importance weight of each training text, every query a target distribution of its own.

    `w_i = Σ_b c_i(b) log(p_x(b) / p(b))`, c counts in bucket b, p_x and p frequencies in the query
    and in the training set.

    Returns:
      `[Q, N]` float32.
    """
    del model, train
    counts, p = state
    own = _counts(query, settings).toarray() + settings.smoothing * p * settings.buckets
    ratio = np.log(own / own.sum(axis=1, keepdims=True)) - np.log(p)
    return np.asarray((counts @ ratio.T).T, np.float32)
