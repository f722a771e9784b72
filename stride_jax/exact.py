"""Exact scores: of the examples an index keeps, and of others from one forward pass over them.

`w_i(x) = Σ_sites <V_x, g_i>`, `V_x = (F + gamma I)^{-1} g_x / Σ omega`: what the K measurements
stand for, without the sketch (docs/method.md §8.2).

Letters of its own: Y rows of measurements, of queries or of their token groups; U examples that
are scored; H kept tokens.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax import operators as ops
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel
from stride_jax.ids import same_ids
from stride_jax.index import Index
from stride_jax.observed import Forward, Source, refuse_not_finite
from stride_jax.operators.basis import example_features
from stride_jax.operators.gradients import steering_gradients
from stride_jax.resident import resident
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.precision import precise
from stride_jax.taps import Params

Directions = dict[str, jax.Array]
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
    question: ops.Question = ops.LOSS,
) -> Directions:
    """`V_x` of queries, or of their groups of tokens, at every site.

    Args:
      frozen: the model.
      index: with its curvature.
      queries: Q of them.
      group: tokens read together; 0 for whole sequences.
      execution: devices, memory.
      question: what is asked of them.
    """
    settings = frozen.settings.closed_form
    parts: dict[str, list[jax.Array]] = {name: [] for name in frozen.sites}
    for chunk in frozen.chunks(queries, execution, "directions"):
        for name, site in frozen.sites.items():
            basis = index.operators[name].basis
            source = frozen.observed_source(name, chunk, question)
            parts[name].append(
                ops.directions(index.fisher[name], basis, site, source, settings, group)
            )
    return {n: v[0] if len(v) == 1 else jnp.concatenate(v) for n, v in parts.items()}


def kept_scores(index: Index, v: Directions, memory: int = 1 << 30) -> Columns:
    """Scores of what the index keeps; of a token, its share of its example's score."""
    rows = [np.asarray(own.row_H) for own in index.kept.values()]
    row_U = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int32)
    w_YxU = np.zeros((len(next(iter(v.values()))), len(row_U)), np.float32)
    for name, kept in index.kept.items():
        v_YxG = meshes.fetch(v[name]).reshape(len(v[name]), -1)
        b_HxR, e_HxO = np.asarray(kept.b_HxR), np.asarray(kept.e_HxO)
        place_H = np.searchsorted(row_U, np.asarray(kept.row_H))
        order = np.argsort(place_H, kind="stable")
        size = max(1, memory // (16 * v_YxG.shape[1]))
        for start in range(0, len(kept), size):
            some = order[start : start + size]
            at_u, g_uxG = _summed(b_HxR[some], e_HxO[some], place_H[some])
            w_YxU[:, at_u] += v_YxG @ g_uxG.T
    return Columns(row_U, w_YxU)


def _summed(
    b_HxR: np.ndarray, e_HxO: np.ndarray, place_H: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of tokens, added up by example: the examples' places, and `[u, R O]`.

    On the host: a sum by segment costs a CPU's compiled program many times what it costs here.
    """
    b_HxR, e_HxO = b_HxR.astype(np.float32), e_HxO.astype(np.float32)
    g_HxG = (b_HxR[:, :, None] * e_HxO[:, None, :]).reshape(len(b_HxR), -1)
    starts = np.flatnonzero(np.diff(place_H, prepend=-1))
    if len(starts) < len(g_HxG):
        g_HxG = np.add.reduceat(g_HxG, starts, axis=0)
    return place_H[starts], g_HxG


class Step(NamedTuple):
    """What a compiled step of exact scores depends on besides shapes.

    Attributes:
      forward: the frozen model on training examples; traced.
      parts: number of equal parts in which a batch runs the model.
      mesh: devices.
    """

    forward: Forward
    parts: int
    mesh: Mesh


@functools.partial(jax.jit, static_argnames="step")
@precise
def score_batch(
    params: Params, site: ops.Site, basis: ops.Basis, v_YxG: jax.Array, batch: Any, step: Step
) -> jax.Array:
    """Exact scores of a batch at one site, `[B, Y]`; no gradient outlives it."""

    def part(batch: Any) -> jax.Array:
        with meshes.traced_over(step.mesh):
            observed, context = step.forward(params, site, batch)
        b_nxTxR = example_features(basis, observed.activations)
        g_nxRxO = steering_gradients(site, params, b_nxTxR, observed, context)
        return g_nxRxO.reshape(len(g_nxRxO), -1)

    devices = step.mesh.size
    pieces = jax.tree.map(lambda x: meshes.cut(x, devices, step.parts), batch)
    return meshes.joined(jax.lax.map(part, pieces), devices) @ v_YxG.T


def scored(
    frozen: FrozenModel,
    index: Index,
    v: Directions,
    examples: Examples,
    rows: np.ndarray,
    execution: Execution = Execution(),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Exact scores of some training examples, batch by batch, each read once for every site.

    Args:
      frozen: the model.
      index: bases of its sites.
      v: from `directions`.
      examples: training examples.
      rows: which of them, ascending.
      execution: devices, bars, memory.

    Yields:
      The rows of a batch, and their scores `[Y, batch]`, nats.

    Raises:
      ValueError: logits that are not finite.
    """
    asked = {n: (own, index.operators[n].basis, v[n]) for n, own in frozen.sites.items()}
    yield from score_rows(asked, frozen.source(examples, training=True), rows, execution)


def score_rows(
    asked: Mapping[str, tuple[ops.Site, ops.Basis, jax.Array]],
    source: Source,
    rows: np.ndarray,
    execution: Execution = Execution(),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`scored` of examples as a source has them.

    Args:
      asked: `{site: itself, its basis, and the directions of all rows}`.
      source: training examples, doubted as the closed form reads them.
      rows, execution: as in `scored`.
    """
    if not len(rows):
        return
    mesh = meshes.local_mesh() if execution.mesh is None else execution.mesh
    source, whole = resident(source, mesh, execution.memory), meshes.replicated(mesh)
    site, _, first_v = next(iter(asked.values()))
    # By shapes: taking a row would compile for each number of rows.
    width = max(math.prod(v.shape[1:]) for _, _, v in asked.values())
    size, parts = batch_size(source.extent(site), width, len(rows), execution, mesh)
    count = len(first_v)
    placed = [
        meshes.place((site, basis, _in_eights(v)), whole) for site, basis, v in asked.values()
    ]
    step = Step(source.forward, parts, mesh)
    for first in execution.progress(range(0, len(rows), size), desc="exact"):
        some = rows[first : first + size]
        batch = meshes.place(source.data, meshes.over_examples(mesh), np.resize(some, size))
        total_BxY = np.zeros((size, count), np.float32)
        for own in placed:
            scores_BxY = score_batch(source.params, *own, batch, step=step)
            total_BxY += meshes.fetch(scores_BxY)[:, :count]
        refuse_not_finite(total_BxY)
        yield some, total_BxY[: len(some)].T


def _in_eights(v: Any) -> Any:
    """Directions as vectors, with rows of zeros up to a multiple of eight: few sizes, so that the
    next question finds its programs compiled."""
    if not (short := -len(v) % 8):
        return v.reshape(len(v), -1)
    flat = meshes.fetch(v).reshape(len(v), -1)
    return np.pad(flat, ((0, short), (0, 0)))


def batch_size(
    extent: tuple[int, int], width: int, count: int, execution: Execution, mesh: Mesh
) -> tuple[int, int]:
    """Examples per batch, of all devices, and the parts in which each device reads its own.

    Args:
      extent: T tokens and C classes.
      width: R O, numbers of one gradient.
      count: examples to score.
      execution: an eighth of the memory holds gradients, a sixteenth a part's logits.
      mesh: devices.
    """
    tokens, classes = extent
    most = min(execution.batch_size, max(1, execution.memory // 8 // (4 * width)))
    # One of few sizes, so that the next question finds its programs compiled.
    own = meshes.even(_rounded(-(-count // mesh.size)), most)
    parts = -(-own // max(1, execution.memory // 16 // (4 * 4 * tokens * classes)))
    return mesh.size * parts * -(-own // parts), parts


def _rounded(count: int) -> int:
    """A count's next of four sizes an octave.

    >>> [_rounded(n) for n in (1, 5, 9, 100, 1000)]
    [1, 5, 10, 112, 1024]
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def positions(index: Index, examples: Examples) -> np.ndarray:
    """The row of `examples` that holds each training example of the index, `[N]`.

    Raises:
      ValueError: an id of the index that is not there, with its number and the first.
    """
    if same_ids(examples.ids, index.train_ids):
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
