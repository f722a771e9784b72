"""Is this model safe to attribute? A few forward passes that tell, before the expensive work."""

import hashlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.examples import Examples
from stride_jax.observed import refuse_not_finite
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.taps import Params, TappedModel

_ROWS = 8
# Of the largest logit: bfloat16 rounds by .4 %, a batch norm in training mode moves by far more.
_TOLERANCE = 0.02


def check_model(
    tapped: TappedModel, params: Params, examples: Examples, execution: Execution = Execution()
) -> None:
    """Refuse a model whose logits would make every score meaningless.

    Eight evenly spaced examples run three times: as they are, each at another place of the batch,
    and half of them beside other examples.

    Args:
      tapped, params: the model.
      examples: some that it reads.
      execution: devices.

    Raises:
      ValueError: logits that are not finite; that depend on an example's place or on the rest of
        the batch (dropout, batch norm in training mode, a hidden random state); or that are
        probabilities.

    Warns:
      UserWarning: logits that are the same for examples that differ.
    """
    mesh = meshes.local_mesh() if execution.mesh is None else execution.mesh
    params = meshes.everywhere(params, mesh)
    size = -(-_ROWS // mesh.size) * mesh.size
    rows_B = np.linspace(0, len(examples) - 1, size).astype(int)
    inputs_B = np.asarray(examples.inputs)[rows_B]

    def logits(order_B: np.ndarray) -> np.ndarray:
        batch = meshes.place(inputs_B[order_B], meshes.over_examples(mesh))
        return meshes.fetch(tapped(params, batch)[0]).astype(np.float32)

    order = np.arange(size)
    first = logits(order)
    refuse_not_finite(first)
    largest = max(float(np.abs(first).max()), 1e-6)
    others = np.where(order < size // 2, order, 0)
    for places, compared, what in (
        (np.roll(order, 1), size, "an example's place in the batch"),
        (others, size // 2, "the rest of the batch"),
    ):
        difference = np.abs(logits(places) - first[places])[:compared].max(initial=0.0)
        if difference > _TOLERANCE * largest:
            raise ValueError(
                f"the model's logits depend on {what}: they change by {difference:.3g} (largest "
                f"logit {largest:.3g}); switch dropout and batch norm to inference (train=False, "
                "model.eval()) and give it no random state of its own"
            )
    _refuse_probabilities(first)
    spread = float(np.ptp(first, axis=0).max())
    if spread <= 1e-7 * largest and np.ptp(inputs_B, axis=0).max(initial=0) > 0:
        warnings.warn(
            f"the model's logits are the same for {size} examples that differ: it tells nothing "
            "apart, and neither will its attributions; check the checkpoint",
            stacklevel=3,
        )


def _refuse_probabilities(logits: np.ndarray) -> None:
    sums = logits.sum(axis=-1)
    if logits.min() >= 0 and logits.max() <= 1 and np.abs(sums - 1).max() < 1e-3:
        raise ValueError(
            "the model's outputs are probabilities (between 0 and 1, adding up to 1): give logits, "
            "such as log p, whose softmax they are"
        )


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    """A sum of all bits by place, modulo 2^32: exact, and the same however an array is laid out."""
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    if not jnp.issubdtype(leaf.dtype, jnp.unsignedinteger):
        leaf = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    words = leaf.reshape(-1).astype(jnp.uint32)
    if leaf.dtype.itemsize == 8:
        words = words * jnp.uint32(31) + (leaf.reshape(-1) >> 32).astype(jnp.uint32)
    place = jax.lax.iota(jnp.uint32, words.shape[0])
    mixed = (words ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)


def parameters_fingerprint(params: Params) -> str:
    """Hash of a model's parameters, 16 hexadecimal digits: names, shapes, dtypes and bits.

    >>> one = parameters_fingerprint({"w": np.ones(3, np.float32)})
    >>> one == parameters_fingerprint({"w": jnp.ones(3, jnp.float32)})
    True
    >>> one == parameters_fingerprint({"w": np.ones(3, np.float32) * 2})
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)}".encode())
        digest.update(_described(leaf).encode())
    return digest.hexdigest()


def _described(leaf: Any) -> str:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, jax.Array):
        # In the dtype that the model's programs read it in.
        leaf = jnp.asarray(leaf)
    size = f"{leaf.shape}{leaf.dtype}"
    return f"{size}{int(meshes.fetch(_checksum(leaf)))}" if leaf.size else size
