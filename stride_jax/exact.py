"""Exact scores: of the examples an index keeps, and of others from one forward pass over them.

`w_i(x) = Σ_sites <V_x, g_i>`, `V_x = (F + gamma I)^{-1} g_x / Σ omega`: what the K measurements
stand for, without the sketch (docs/method.md §8.2).

Letters of its own: Y rows of measurements, of queries or of their token groups; U examples that
are scored; H kept tokens.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import operators as ops
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel
from stride_jax.index import Index
from stride_jax.observed import as_training
from stride_jax.runtime.execution import Execution

Directions = dict[str, np.ndarray]
"""`{site: V of each row, [Y, R, O]}`."""


class Columns(NamedTuple):
    """Scores of some examples for all rows of measurements.

    Attributes:
      row_U: rows of the index, ascending.
      w_YxU: their scores, nats.
    """

    row_U: np.ndarray
    w_YxU: np.ndarray


def directions(
    frozen: FrozenModel,
    index: Index,
    queries: Examples,
    group: int = 0,
    execution: Execution = Execution(),
) -> Directions:
    """`V_x` of queries, or of their groups of tokens, at every site.

    Args:
      frozen: the model.
      index: with its curvature.
      queries: Q of them.
      group: tokens read together; 0 for whole sequences.
      execution: devices, memory.
    """
    settings = frozen.settings.closed_form
    parts: dict[str, list[np.ndarray]] = {name: [] for name in frozen.sites}
    for chunk in frozen.chunks(queries, execution, "directions"):
        for name, site in frozen.sites.items():
            source, basis = frozen.observed_source(name, chunk), index.operators[name].basis
            v_YxRxO = ops.directions(index.fisher[name], basis, site, source, settings, group)
            parts[name].append(np.asarray(v_YxRxO))
    return {name: np.concatenate(own) for name, own in parts.items()}


def kept_scores(index: Index, v: Directions, memory: int = 1 << 30) -> Columns:
    """Scores of what the index keeps; of a token, its share of its example's score."""
    rows = [np.asarray(own.row_H) for own in index.kept.values()]
    row_U = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int32)
    w_YxU = np.zeros((len(next(iter(v.values()))), len(row_U)), np.float32)
    for name, kept in index.kept.items():
        v_YxG = v[name].reshape(len(v[name]), -1)
        size = max(1, memory // (16 * v_YxG.shape[1]))
        for first in range(0, len(kept), size):
            own = jax.tree.map(lambda x: x[first : first + size], kept)  # noqa: B023
            places = np.searchsorted(row_U, np.asarray(own.row_H))
            unique, at_h = np.unique(places, return_inverse=True)
            g_uxG = np.asarray(_summed(own.b_HxR, own.e_HxO, at_h, len(unique)))
            w_YxU[:, unique] += v_YxG @ g_uxG.T
    return Columns(row_U, w_YxU)


@functools.partial(jax.jit, static_argnames="count")
def _summed(b_HxR: jax.Array, e_HxO: jax.Array, at_H: jax.Array, count: int) -> jax.Array:
    """Gradients of tokens, added up by example, `[count, R O]`."""
    g_HxRxO = jnp.einsum("hr,ho->hro", b_HxR.astype(jnp.float32), e_HxO.astype(jnp.float32))
    return jax.ops.segment_sum(g_HxRxO.reshape(len(at_H), -1), at_H, count)


def scored(
    frozen: FrozenModel,
    index: Index,
    v: Directions,
    examples: Examples,
    rows: np.ndarray,
    execution: Execution = Execution(),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Exact scores of some training examples, chunk by chunk, each read once.

    Args:
      frozen: the model.
      index: bases of its sites.
      v: from `directions`.
      examples: training examples.
      rows: which of them, ascending.
      execution: devices, bars, memory.

    Yields:
      The rows of a chunk, and their scores `[Y, chunk]`.
    """
    doubt = frozen.settings.closed_form.doubt
    # A part of the rows at a time, so that memory-mapped examples stay on disk.
    each = max(1, examples.inputs[:1].nbytes + examples.labels[:1].nbytes)
    most = min(_rounded(len(rows)), max(1, execution.memory // 4 // each))
    for first in range(0, len(rows), most):
        some = rows[first : first + most]
        # One of few sizes, so that the next question finds its programs compiled.
        part = _some(examples, np.resize(some, most) if len(rows) < len(examples) else some)
        for chunk in frozen.chunks(part, execution, "exact"):
            chunk = chunk._replace(observed=as_training(chunk.observed, doubt))
            total = np.zeros((), np.float32)
            for name, site in frozen.sites.items():
                source, basis = frozen.observed_source(name, chunk), index.operators[name].basis
                total = total + ops.direct_scores(v[name], basis, site, source, execution.memory)
            real = some[chunk.rows]
            if len(real):
                yield real, total[:, : len(real)]


def _rounded(count: int) -> int:
    """A count's next of four sizes an octave.

    >>> [_rounded(n) for n in (1, 5, 9, 100, 1000)]
    [1, 5, 10, 112, 1024]
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def _some(examples: Examples, rows: np.ndarray) -> Examples:
    """Rows of checked examples, of which some may repeat."""
    weights = None if examples.weights is None else examples.weights[rows]
    return Examples.trusted(
        examples.inputs[rows], examples.labels[rows], examples.ids[rows], weights
    )


def positions(index: Index, examples: Examples) -> np.ndarray:
    """The row of `examples` that holds each training example of the index, `[N]`.

    Raises:
      ValueError: an id of the index that is not there, with its number and the first.
    """
    if np.array_equal(examples.ids, index.train_ids):
        return np.arange(len(index.train_ids))
    place: Mapping[str, int] = {name: i for i, name in enumerate(examples.ids.tolist())}
    rows = np.array([place.get(name, -1) for name in index.train_ids.tolist()])
    if (missing := rows < 0).any():
        raise ValueError(
            f"train holds {len(examples)} examples, but {int(missing.sum())} of the index' "
            f"{len(rows)} are not among them, first {index.train_ids[missing.argmax()]}: give the "
            "examples that it was fitted on, under their ids"
        )
    return rows
