"""Measurements: how each operator changes each query's loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

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
      scale: factor on the steering matrices before measuring, divided out again afterwards;
        additivity holds to first order, so a small factor reads the derivative, and the exact
        identity reads it without cancellation.
      max_bytes: largest temporary; queries and subsets are taken in chunks to stay below it.
    """

    scale: float = 0.01
    max_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.max_bytes < 1:
            raise ValueError(f"scale={self.scale}, max_bytes={self.max_bytes}: must be positive")


@jax.jit
def _measure_block(
    site: Site, a_kxRxO: jax.Array, b_BxTxR: jax.Array, observed_B: Observed, context_B: Context
) -> jax.Array:
    shift_kxBxTxC = all_logit_shifts(site, a_kxRxO, b_BxTxR, context_B)
    drop_kxBxT = loss_drop(
        shift_kxBxTxC, observed_B.logits_NxTxC[None], observed_B.labels_NxT[None]
    )
    return (drop_kxBxT * observed_B.weights_NxT[None]).sum(axis=-1).T


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

    `y_{x,k} = Σ_t omega_t [Loss(o_x) − Loss(õ_k(x))]_t / s` with steering matrices `s a_k`, by the
    exact identity of `losses.loss_drop`.

    Args:
      site: where the operators act.
      operators: the index.
      observed: the frozen model on the queries.
      context: `steering.context` of the site for the same queries.
      settings: scale and memory.
      mesh: the subsets of a block are split over `subset`.
      progress: wraps the blocks.

    Returns:
      `[Q, K]` float32 nats; positive: the subset helps the query.
    """
    mesh = meshes.make_mesh() if mesh is None else mesh
    b_QxTxR = example_features(operators, observed.activations)
    a_KxRxO = operators.a_KxRxO * settings.scale
    q, k = len(observed), len(operators)
    _, tokens, classes = observed.logits_NxTxC.shape
    # About three arrays of shifts are alive at once.
    queries, subsets = block_sizes(q, k, 3 * 4 * tokens * classes, settings.max_bytes)
    run = functools.partial(_measure_block, site)
    rest = (b_QxTxR, dataclasses.replace(observed, activations={}), context)
    y_QxK = np.empty((q, k), np.float32)
    devices = mesh.shape[meshes.SUBSET]
    for i in progress(range(0, q, queries), desc="measure"):
        rows = jnp.minimum(jnp.arange(i, i + queries), q - 1)  # one shape for every block
        part = jax.device_put(jax.tree.map(lambda v: v[rows], rest), meshes.replicated(mesh))  # noqa: B023
        for j in range(0, k, subsets):
            a = a_KxRxO[j : j + subsets]
            split = meshes.over_subsets(mesh) if len(a) % devices == 0 else meshes.replicated(mesh)
            block = np.asarray(run(jax.device_put(a, split), *part))
            y_QxK[i : i + queries, j : j + subsets] = block[: q - i]
    return y_QxK / np.float32(settings.scale)
