"""Candidates besides those of the sketch: training examples that share a query's words or features.

Exact scores decide; a source only has to name who deserves one (docs/method.md §8.6). The sketch
sees what moves the loss, `bm25` the same words, `features` the same activations.

Letter of its own: P places of a shortlist.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.candidates import Candidates, strongest
from stride_jax.exact import positions
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel
from stride_jax.index import Index
from stride_jax.operators.basis import Basis, example_features
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.precision import precise
from stride_jax.sequences import token_lists
from stride_jax.settings import BM25, FEATURES, ExactSettings
from stride_jax.taps import Activations

Find = Callable[[Examples, int], list[Candidates]]
"""Candidates of each source for some queries, at most so many per source and query."""

_OwnFind = Callable[[Examples, int], Candidates]

_SHARE = 4


def most_named(settings: ExactSettings, num_train: int) -> int:
    """How many examples a source may name for a query: a quarter of the budget, so that those of
    the sketch have at least half of it.

    >>> most_named(ExactSettings(budget=300), 5000)
    75
    """
    return -(-settings.allowed(num_train) // _SHARE)


def bm25(
    train: Sequence[np.ndarray],
    queries: Sequence[np.ndarray],
    count: int,
    execution: Execution = Execution(),
) -> Candidates:
    """Training texts that share the rarest words with each query (package bm25s, extra `text`).

    Args:
      train: N texts as arrays of token ids, such as those of `sequences.token_lists`.
      queries: Q texts likewise.
      count: texts per query; fewer where fewer share a word.
      execution: memory.

    Raises:
      ModuleNotFoundError: bm25s is not installed.

    >>> texts = [np.array([1, 2, 3]), np.array([4, 5]), np.array([2, 6])]
    >>> bm25(texts, [np.array([5, 9])], 2).row_QxP.tolist()
    [[1]]
    """
    return _word_index(train, execution)(queries, count)


def features(
    train_NxR: np.ndarray,
    query_QxR: np.ndarray,
    count: int,
    execution: Execution = Execution(),
) -> Candidates:
    """Training examples of the largest positive cosine with each query's features.

    Args:
      train_NxR: features, such as those of `feature_sums`.
      query_QxR: features of the queries.
      count: examples per query.
      execution: memory.

    >>> features(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]]), np.array([[1.0, 0.0]]), 2)
    Candidates(source='features', row_QxP=array([[0, 2]]))
    """
    unit_NxR, unit_QxR = _of_length_one(train_NxR), _of_length_one(query_QxR)
    rows = _in_blocks(
        lambda some: unit_QxR[some] @ unit_NxR.T, unit_QxR, unit_NxR, count, execution
    )
    return Candidates(FEATURES, rows)


def feature_sums(
    frozen: FrozenModel, basis: Basis, examples: Examples, execution: Execution = Execution()
) -> np.ndarray:
    """Basis features, summed over the tokens that count, `[N, R − 1]` float32.

    One forward pass; 4 (R − 1) bytes of each example are held. The constant is left out: features
    are centred, so their cosine tells what sets an example apart.
    """
    parts = [
        np.asarray(_summed(basis, chunk.observed.activations, chunk.observed.weights_NxT))
        for chunk in frozen.chunks(examples, execution, "features")
    ]
    return np.concatenate(parts)


@jax.jit
@precise
def _summed(basis: Basis, activations: Activations, weights_NxT: jax.Array) -> jax.Array:
    b_NxTxR = example_features(basis, activations)[..., :-1]
    return jnp.einsum("ntr,nt->nr", b_NxTxR, weights_NxT)


def refuse_unfit(sources: Sequence[str], examples: Examples) -> None:
    """Refuse a source that can't read these examples, or whose package is missing.

    Raises:
      ValueError: words are asked for, but examples are no sequences of tokens.
      ModuleNotFoundError: bm25s is not installed.
    """
    if BM25 in sources:
        token_lists(examples.take([0]), BM25)
        _bm25s()


def finder(
    sources: Sequence[str],
    frozen: FrozenModel,
    index: Index,
    train: Examples,
    execution: Execution = Execution(),
) -> Find:
    """Finds candidates of some sources; what it needs of the training data is made once, when first
    asked.

    Args:
      sources: names of `settings.SOURCES`.
      frozen, index: what the queries are read with.
      train: the training data, those of the index among them.
      execution: devices, bars, memory.

    Raises:
      ValueError: as `refuse_unfit`, or an id of the index that `train` lacks.
    """
    if not sources:
        return lambda queries, count: []
    refuse_unfit(sources, train)
    makers = {BM25: _by_words, FEATURES: _by_features}

    @functools.cache
    def made() -> list[_OwnFind]:
        rows = positions(index, train)
        own = train if np.array_equal(rows, np.arange(len(train))) else train.take(rows)
        return [makers[name](frozen, index, own, execution) for name in sources]

    return lambda queries, count: [find(queries, count) for find in made()]


def _by_words(frozen: FrozenModel, index: Index, train: Examples, execution: Execution) -> _OwnFind:
    del frozen, index
    match = _word_index(token_lists(train, BM25), execution)
    return lambda queries, count: match(token_lists(queries, BM25), count)


def _by_features(
    frozen: FrozenModel, index: Index, train: Examples, execution: Execution
) -> _OwnFind:
    basis = next(iter(index.operators.values())).basis
    train_NxR = feature_sums(frozen, basis, train, execution)

    def find(queries: Examples, count: int) -> Candidates:
        query_QxR = feature_sums(frozen, basis, queries, execution)
        return features(train_NxR, query_QxR, count, execution)

    return find


def _bm25s() -> Any:
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the source bm25 needs the package bm25s: pip install 'stride-jax[text]'",
            name="bm25s",
        ) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells each step of its own
    return bm25s


def _word_index(
    train: Sequence[np.ndarray], execution: Execution
) -> Callable[[Sequence[np.ndarray], int], Candidates]:
    """BM25 of the training texts, with the package's own constants."""
    index, words = _bm25s().BM25(), np.unique(np.concatenate([*train, np.zeros(0, np.int64)]))
    lists = [np.searchsorted(words, own).tolist() for own in train]
    if len(words):
        vocabulary = dict(zip(words.tolist(), range(len(words)), strict=True))
        index.index((lists, vocabulary), create_empty_token=False, show_progress=False)

    def scores(query: np.ndarray) -> np.ndarray:
        known = query[np.isin(query, words)]
        if not len(known):
            return np.zeros(len(train), np.float32)
        return index.get_scores_from_ids(np.searchsorted(words, known))

    def match(queries: Sequence[np.ndarray], count: int) -> Candidates:
        def block(some: slice) -> np.ndarray:
            return np.stack([scores(own) for own in queries[some]])

        return Candidates(BM25, _in_blocks(block, queries, train, count, execution))

    return match


def _of_length_one(v_NxR: np.ndarray) -> np.ndarray:
    return v_NxR / np.maximum(np.linalg.norm(v_NxR, axis=1, keepdims=True), 1e-30)


def _in_blocks(
    scores: Callable[[slice], np.ndarray],
    queries: Sequence[Any] | np.ndarray,
    train: Sequence[Any] | np.ndarray,
    count: int,
    execution: Execution,
) -> np.ndarray:
    """Rows of the largest positive scores, `[Q, P]`, in blocks of queries that fit the memory."""
    # Scores, their negatives and an order of 8 bytes are alive at once.
    size = max(1, execution.memory // 2 // (16 * len(train)))
    blocks = [
        strongest(scores(slice(first, first + size)), count)
        for first in range(0, len(queries), size)
    ]
    width = max(own.shape[1] for own in blocks)
    pads = [np.full((len(own), width - own.shape[1]), -1, np.int64) for own in blocks]
    return np.concatenate([np.concatenate(pair, axis=1) for pair in zip(blocks, pads, strict=True)])
