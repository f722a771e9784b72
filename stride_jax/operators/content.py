"""Subsets that follow content: each example joins the cluster whose gradients point its way.

An example's gradient `g_i = Σ_t omega_t b_t e_tᵀ` has a size and a direction. Directions are
clustered (spherical k-means, weighted by the squared size, on a sample), and every example joins
the nearest centroid in the pass that sums its gradient. An operator for a cluster then says what
its members have in common, and each member's share goes by its own size (docs/method.md §2.3).

Letters of its own: Z numbers of a sketched gradient, M examples of the sample.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from stride_jax.design import Design
from stride_jax.operators.outputs import draw_signs, fold
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.precision import precise
from stride_jax.runtime.programs import shape

# A sketch holds the leading features of each token, and its errors folded into a few.
_FEATURES, _OUTPUTS = 40, 16
_ROUNDS = 4
# Examples of the sample compared with the centroids at a time.
_CHUNK = 4096


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Content:
    """What assigns examples to clusters.

    Attributes:
      centroids_KxZ: mean sketched directions.
      threshold: tokens with `||b|| ||e||` from here on are kept one by one (`kept`), and do not
        count for the direction where an example has others.
      signs_O: signs that fold the errors; None where the sketch holds them all.
    """

    centroids_KxZ: jax.Array
    threshold: jax.Array
    signs_O: jax.Array | None


def token_norms(b_BxTxR: jax.Array, e_BxTxO: jax.Array) -> jax.Array:
    """`||b_t|| ||e_t||`, the size of each token's gradient, `[B, T]`."""
    return jnp.sqrt((b_BxTxR**2).sum(axis=-1) * (e_BxTxO**2).sum(axis=-1))


@jax.jit
@precise
def sketches(
    content: Content, b_BxTxR: jax.Array, e_BxTxO: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sketched gradients, of light tokens where there are any: directions `[B, Z]`, sizes `[B]`.

    Args:
      content: threshold and signs.
      b_BxTxR: features; the leading ones vary most.
      e_BxTxO: errors times weights.

    Returns:
      Directions of unit length. The size is minus that of the whole where no token is light.
    """
    light_BxT = token_norms(b_BxTxR, e_BxTxO) < content.threshold
    heavy_B = ~light_BxT.any(axis=1)
    counts_BxT = (light_BxT | heavy_B[:, None]).astype(e_BxTxO.dtype)
    e = e_BxTxO if content.signs_O is None else fold(e_BxTxO, content.signs_O, _OUTPUTS)
    z = jnp.einsum("btr,bto,bt->bro", b_BxTxR[..., :_FEATURES], e, counts_BxT)
    z = z.reshape(len(z), -1)
    size_B = jnp.linalg.norm(z, axis=1)
    return z / jnp.maximum(size_B, 1e-30)[:, None], jnp.where(heavy_B, -size_B, size_B)


@jax.jit
@precise
def nearest(centroids_KxZ: jax.Array, z_BxZ: jax.Array) -> jax.Array:
    """The nearest centroid of each sketch, `[B]` int32; of equal ones the first."""
    squares_K = (centroids_KxZ**2).sum(axis=1)
    return jnp.argmin(squares_K[None] - 2 * z_BxZ @ centroids_KxZ.T, axis=1).astype(jnp.int32)


def assign(content: Content, b_BxTxR: jax.Array, e_BxTxO: jax.Array) -> jax.Array:
    """The cluster of each example, from its own gradient alone, `[B]` int32."""
    z_BxZ, _ = sketches(content, b_BxTxR, e_BxTxO)
    return nearest(content.centroids_KxZ, z_BxZ)


def unfitted(norms: np.ndarray, heavy_share: float, outputs: int, seed: int) -> Content:
    """What sketches need, before there are centroids.

    Args:
      norms: `||b|| ||e||` of a sample of tokens.
      heavy_share: share of all tokens that is kept one by one.
      outputs: O.
      seed: of the signs.
    """
    threshold = np.inf if heavy_share >= 1 else np.quantile(norms, 1 - heavy_share)
    if heavy_share == 0:
        threshold = np.inf
    signs_O = draw_signs(outputs, seed) if outputs > _OUTPUTS else None
    return Content(jnp.zeros((0, 0)), jnp.asarray(threshold, jnp.float32), signs_O)


def shapes(num_subsets: int, rank: int, outputs: int) -> Content:
    """A `Content` of abstract arrays, which a plan compiles for."""
    width = min(rank, _FEATURES) * min(outputs, _OUTPUTS)
    signs_O = shape((outputs,)) if outputs > _OUTPUTS else None
    return Content(shape((num_subsets, width)), shape(()), signs_O)


def fit_content(
    fresh: Content,
    sketched: Sequence[tuple[jax.Array, jax.Array]],
    design: Design,
    refined: bool = True,
) -> Content:
    """Centroids from sketches of a sample of the training set.

    Args:
      fresh: from `unfitted`.
      sketched: what `sketches` made of the sample, in parts.
      design: K, and the seed of the first centroids.
      refined: whether centroids are refined by k-means; else they are K examples.

    Returns:
      K centroids, in no order; repeated ones attract nobody.
    """
    z_MxZ, size_M = (np.concatenate(own) for own in zip(*sketched, strict=True))
    # Examples without a light token will be kept whole and need no cluster.
    if (size_M > 0).sum() >= design.num_subsets:
        z_MxZ, size_M = z_MxZ[size_M > 0], size_M[size_M > 0]
    weight_M, rounds = size_M.astype(np.float64) ** 2, _ROUNDS if refined else 0
    centroids = spherical_means(z_MxZ, weight_M, design.num_subsets, design.seed, rounds)
    return dataclasses.replace(fresh, centroids_KxZ=jnp.asarray(centroids))


def spherical_means(
    z_MxZ: np.ndarray, weight_M: np.ndarray, num_subsets: int, seed: int, rounds: int = _ROUNDS
) -> np.ndarray:
    """Weighted k-means of unit vectors: `argmin_C Σ_m weight_m min_k ||z_m − c_k||²`, `[K, Z]`.

    The first centroids are drawn by weight; some rounds of Lloyd's follow, in which a cluster
    without members moves to the vector that is served worst.

    >>> z = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
    >>> np.unique(spherical_means(z, np.ones(3), 2, seed=0), axis=0).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    rng = np.random.default_rng(seed)
    weight_M = np.maximum(weight_M, 1e-30 * max(weight_M.max(initial=0.0), 1e-30))
    first = rng.choice(
        len(z_MxZ), num_subsets, replace=len(z_MxZ) < num_subsets, p=weight_M / weight_M.sum()
    )
    centroids = z_MxZ[first].astype(np.float32)
    count = len(z_MxZ)
    size, own_M = meshes.even(count, _CHUNK), np.empty(count, np.int32)
    for _ in range(rounds):
        for start in range(0, count, size):
            # The last part overlaps the one before: one size, one program.
            some = slice(first := min(start, count - size), first + size)
            own_M[some] = nearest(centroids, z_MxZ[some])
        total_K = np.bincount(own_M, weight_M, num_subsets)
        members = scipy.sparse.csc_array(
            (weight_M, own_M, np.arange(count + 1)), shape=(num_subsets, count)
        )
        present, empty = np.flatnonzero(total_K > 0), np.flatnonzero(total_K == 0)
        gap_MxZ = z_MxZ - centroids[own_M]
        centroids[present] = (members @ z_MxZ)[present] / total_K[present, None]
        if len(empty):
            error_M = weight_M * np.einsum("mz,mz->m", gap_MxZ, gap_MxZ)
            worst = np.argsort(-error_M, kind="stable")[: len(empty)]
            centroids[empty[: len(worst)]] = z_MxZ[worst]
    return centroids
