"""A shared basis of the logits' directions: K steering matrices that a large vocabulary affords.

The directions are those in which the model's predictions vary most, the leading eigenvectors of the
mean Fisher of the logits, `E[diag p − p pᵀ]`. A sketch of it is added up example by example, so the
C x C matrix is never formed (Nyström's approximation: Tropp et al., Fixed-rank approximation of a
positive-semidefinite matrix from streaming data, 2017).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.taps import Observed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputSketch:
    """A sum over examples.

    Attributes:
      test_CxS: random directions Omega, orthonormal; the identity where S = C.
      product_CxS: `Σ omega (diag p − p pᵀ) Omega`.
    """

    test_CxS: jax.Array
    product_CxS: jax.Array


def empty_sketch(num_classes: int, rank: int, seed: int = 0) -> OutputSketch:
    """A sketch of no examples, wide enough for a basis of this rank."""
    size = min(num_classes, 2 * rank + 32)
    if size == num_classes:
        test = np.eye(num_classes)
    else:
        noise = np.random.default_rng(seed).normal(size=(num_classes, size))
        test = np.linalg.qr(noise)[0]
    return OutputSketch(jnp.asarray(test, jnp.float32), jnp.zeros((num_classes, size)))


@jax.jit
def add_to_sketch(sketch: OutputSketch, observed: Observed) -> OutputSketch:
    """The sketch with these examples added."""
    c = sketch.test_CxS.shape[0]
    p = jax.nn.softmax(observed.logits_NxTxC).reshape(-1, c)
    wp = p * observed.weights_NxT.reshape(-1, 1)
    new = wp.sum(axis=0)[:, None] * sketch.test_CxS - wp.T @ (p @ sketch.test_CxS)
    return dataclasses.replace(sketch, product_CxS=sketch.product_CxS + new)


def output_basis(sketch: OutputSketch, rank: int) -> jax.Array:
    """Leading eigenvectors of the sketched Fisher, orthonormal columns, `[C, rank]`.

    Exact up to rounding where the sketch is as wide as the vocabulary.

    Raises:
      ValueError: a rank larger than the sketch.
    """
    test, product = (np.asarray(v, np.float64) for v in (sketch.test_CxS, sketch.product_CxS))
    if rank > test.shape[1]:
        raise ValueError(f"output rank={rank} exceeds the sketch's {test.shape[1]} directions")
    # The shift makes the core positive definite: logits have a free constant.
    shift = 1e-7 * np.linalg.norm(product)
    shifted = product + shift * test
    core = test.T @ shifted
    half = np.linalg.cholesky((core + core.T) / 2 + shift * np.eye(len(core)))
    vectors = np.linalg.svd(np.linalg.solve(half, shifted.T).T, full_matrices=False)[0][:, :rank]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), range(rank)])
    return jnp.asarray(vectors * signs, jnp.float32)
