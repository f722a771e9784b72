"""Measurements: how each operator changes each query's loss."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax.operators.gradients import steering_gradients, token_groups
from stride_jax.operators.losses import loss_drop
from stride_jax.operators.steering import (
    Context,
    Operators,
    Site,
    all_logit_shifts,
    example_features,
)
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import Observed


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """How queries are measured.

    Attributes:
      form: `exact` steers the model; `first_order` takes the derivative at zero, one product a
        query and subset; `auto` is exact while one query under all subsets fits `max_bytes`.
      scale: factor on the steering matrices before an exact measurement, divided out again
        afterwards; additivity holds to first order, so a small factor reads the derivative, and
        the exact identity reads it without cancellation. 1 reads operators as published.
      max_bytes: largest temporary; queries and subsets are taken in chunks to stay below it.
      tolerance: where `auto` goes first-order, largest relative difference from exact
        measurements of a sample.
      group: tokens read together, each group with K measurements of its own; 0 for whole sequences.
        A group's influences are sparser than a sequence's, so the sketch loses less (method §5).
    """

    form: str = "auto"
    scale: float = 0.01
    max_bytes: int = 1 << 28
    tolerance: float = 0.05
    group: int = 0

    def __post_init__(self) -> None:
        if self.form not in ("auto", "exact", "first_order"):
            raise ValueError(f"form={self.form!r}: use 'auto', 'exact' or 'first_order'")
        if self.group < 0:
            raise ValueError(f"group={self.group} tokens: use at least 1, or 0 for all of them")
        if self.scale <= 0 or self.max_bytes < 1 or self.tolerance <= 0:
            raise ValueError(
                f"scale={self.scale}, max_bytes={self.max_bytes}, tolerance={self.tolerance}: "
                "must be positive"
            )


@functools.partial(jax.jit, static_argnames="group")
def _exact_block(
    site: Site,
    a_kxRxO: jax.Array,
    b_BxTxR: jax.Array,
    observed_B: Observed,
    context_B: Context,
    group: int = 0,
) -> jax.Array:
    shift_kxBxTxC = all_logit_shifts(site, a_kxRxO, b_BxTxR, context_B)
    drop_kxBxT = loss_drop(
        shift_kxBxTxC, observed_B.logits_NxTxC[None], observed_B.labels_NxT[None]
    )
    drop_BxTxk = jnp.moveaxis(drop_kxBxT * observed_B.weights_NxT[None], 0, -1)
    return (token_groups(drop_BxTxk, group) if group else drop_BxTxk).sum(axis=1)


@functools.partial(jax.jit, static_argnames="group")
def _first_order_block(
    site: Site,
    a_kxRxO: jax.Array,
    b_BxTxR: jax.Array,
    observed_B: Observed,
    context_B: Context,
    group: int = 0,
) -> jax.Array:
    g_BxRxO = steering_gradients(site, b_BxTxR, observed_B, context_B, group)
    return g_BxRxO.reshape(len(g_BxRxO), -1) @ a_kxRxO.reshape(len(a_kxRxO), -1).T


def block_sizes(
    num_queries: int, num_subsets: int, bytes_each: int, max_bytes: int
) -> tuple[int, int]:
    """Queries and subsets of a block so that `queries * subsets * bytes_each <= max_bytes`.

    >>> block_sizes(400, 1000, 1000, 50_000_000)
    (50, 1000)
    """
    cells = max(1, max_bytes // bytes_each)
    subsets = min(num_subsets, cells)
    return min(num_queries, max(1, cells // subsets)), subsets


def measure(
    site: Site,
    operators: Operators,
    observed: Observed,
    context: Context,
    settings: MeasureSettings = MeasureSettings(),
    *,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Measurements of all queries under all operators.

    Exact: `y_{x,k} = Σ_t omega_t [Loss(o_x) − Loss(õ_k(x))]_t / s` with steering matrices `s a_k`,
    by the identity of `losses.loss_drop`. First order: `y_{x,k} = Σ_t omega_t <e_t, b_t a_k>`, with
    `e = e_y − p` (pulled back to the site). Either is multiplied by the operator's own size.

    Args:
      site: where the operators act.
      operators: the index.
      observed: the frozen model on the queries.
      context: `steering.context` of the site for the same queries.
      settings: form, scale and memory.
      mesh: the subsets of a block are split over `subset`.
      progress: wraps the blocks.

    Returns:
      `[Q, K]` float32 nats; positive: the subset helps the query. With token groups `[Q G, K]`, a
      query's groups one after the other, G of them.

    Raises:
      ValueError: where `auto` chose first order, and a sample of exact measurements disagrees.
    """
    mesh = meshes.make_mesh() if mesh is None else mesh
    q, k = len(observed), len(operators)
    _, tokens, classes = observed.logits_NxTxC.shape
    rest = (
        example_features(operators, observed.activations),
        dataclasses.replace(observed, activations={}),
        context,
    )
    # About three arrays of shifts are alive at once.
    shifts = 3 * 4 * tokens * classes
    first_order = settings.form == "first_order"
    if settings.form == "auto" and k * shifts > settings.max_bytes:
        first_order = True
        _check_first_order(site, operators, rest, settings)
    if first_order:
        groups = -(-tokens // settings.group) if settings.group else 1
        gradient = 2 * 4 * operators.a_KxRxO[0].size * groups
        sizes = max(1, min(q, settings.max_bytes // gradient)), k
        block, scale = _first_order_block, 1.0
    else:
        sizes = block_sizes(q, k, shifts, settings.max_bytes)
        block, scale = _exact_block, settings.scale
    block = functools.partial(block, group=settings.group)
    return _blocks(block, site, operators, rest, sizes, scale, mesh, progress)


def _blocks(
    block: Callable[..., jax.Array],
    site: Site,
    operators: Operators,
    rest: Any,
    sizes: tuple[int, int],
    scale: float,
    mesh: Mesh,
    progress: Progress,
) -> np.ndarray:
    queries, subsets = sizes
    q, k = len(rest[0]), len(operators)
    y_QxGxK: np.ndarray | None = None
    a_KxRxO = operators.a_KxRxO * scale
    devices = mesh.shape[meshes.SUBSET]
    for i in progress(range(0, q, queries), desc="measure"):
        rows = jnp.minimum(jnp.arange(i, i + queries), q - 1)  # one shape for every block
        part = jax.device_put(jax.tree.map(lambda v: v[rows], rest), meshes.replicated(mesh))  # noqa: B023
        for j in range(0, k, subsets):
            a = a_KxRxO[j : j + subsets]
            split = meshes.over_subsets(mesh) if len(a) % devices == 0 else meshes.replicated(mesh)
            out = np.asarray(block(site, jax.device_put(a, split), *part))
            out = out.reshape(queries, -1, len(a))
            if y_QxGxK is None:
                y_QxGxK = np.empty((q, out.shape[1], k), np.float32)
            y_QxGxK[i : i + queries, :, j : j + subsets] = out[: q - i]
    assert y_QxGxK is not None
    return y_QxGxK.reshape(-1, k) * np.asarray(operators.size_K / scale)[None]


def _check_first_order(
    site: Site, operators: Operators, rest: Any, settings: MeasureSettings, sample: int = 8
) -> None:
    """Refuse to go first-order where steering for real says something else."""
    part = jax.tree.map(lambda v: v[:sample], rest)
    a = operators.a_KxRxO[:sample]
    linear = np.asarray(_first_order_block(site, a, *part))
    exact = np.asarray(_exact_block(site, a * settings.scale, *part)) / settings.scale
    difference = np.linalg.norm(linear - exact) / max(np.linalg.norm(exact), 1e-30)
    if not difference <= settings.tolerance:
        raise ValueError(
            f"first-order measurements differ from exact ones by {difference:.3f} of their size "
            f"(tolerance={settings.tolerance}) at scale={settings.scale}: lower the scale, or set "
            "form='exact'"
        )
