"""The frozen model as the method reads it: taps, logits and labels of a batch or of many examples."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import Activations, Params, TappedModel

PullBack = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """What the frozen model said about a set of examples; cached once, since it never changes.

    Attributes:
      activations: `{tap: [N, T, D_tap]}`; a classifier has T = 1.
      logits_NxTxC: logits.
      labels_NxT: int32 true class or next token.
      weights_NxT: token weights omega in [0, 1]; a loss is their weighted sum.
    """

    activations: Activations
    logits_NxTxC: jax.Array
    labels_NxT: jax.Array
    weights_NxT: jax.Array

    def __len__(self) -> int:
        return self.labels_NxT.shape[0]


def forward_all(
    tapped: TappedModel,
    params: Params,
    inputs: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    batch_size: int = 512,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Observed:
    """Run the frozen model once over all examples and keep its activations and logits.

    Args:
      tapped: the model.
      params: its parameters.
      inputs: `[N, ...]`.
      labels: `[N]` for a classifier (logits `[N, C]`), `[N, T]` for tokens (logits `[N, T, C]`);
        −1 does not count, as if of weight 0.
      weights: like `labels`, float32; ones by default.
      batch_size: examples a step; rounded up to a multiple of the devices.
      mesh: examples are split over all its devices; this process's by default.
      progress: wraps the batches.

    Returns:
      `Observed`, float32, a classifier's arrays with T = 1 and activations flattened.

    Raises:
      ValueError: lengths that differ, labels outside the classes, or logits that are not finite.
    """
    mesh = meshes.local_mesh() if mesh is None else mesh
    params = meshes.everywhere(params, mesh)
    labels = np.asarray(labels)
    weights = np.ones(labels.shape, np.float32) if weights is None else np.asarray(weights)
    check_examples(tapped, params, inputs, labels, weights)
    devices = mesh.devices.size
    batch_size = -(-min(batch_size, len(inputs)) // devices) * devices
    placed = meshes.over_examples(mesh)
    parts = []
    for start in progress(range(0, len(inputs), batch_size), desc="forward"):
        rows = meshes.pad_rows(np.asarray(inputs[start : start + batch_size]), batch_size)
        seen = tapped(params, meshes.place(rows, placed))
        parts.append(jax.tree.map(lambda v: meshes.fetch(v).astype(np.float32), seen))
    logits, activations = jax.tree.map(lambda *xs: np.concatenate(xs)[: len(inputs)], *parts)
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=tuple(range(1, logits.ndim))).sum())
        raise ValueError(
            f"the model's logits are not finite for {bad} of {len(logits)} examples; compute them "
            "in float32 and check the checkpoint"
        )
    return _as_tokens(*jax.tree.map(jnp.asarray, (logits, activations, labels, weights)))


def forward_batch(
    tapped: TappedModel, params: Params, inputs: Any, labels: jax.Array, weights: jax.Array
) -> Observed:
    """What the frozen model says about a batch: the pure form of `forward_all`, for use within `jit`.

    Args:
      tapped, params: the model.
      inputs, labels, weights: as in `forward_all`; labels are not checked.
    """
    return _as_tokens(*tapped.forward(params, inputs), labels, weights)


def forward_and_pull(
    tapped: TappedModel,
    params: Params,
    inputs: Any,
    labels: jax.Array,
    weights: jax.Array,
    tap: str,
) -> tuple[Observed, PullBack]:
    """`forward_batch`, and what takes gradients of the logits back to a tap.

    Args:
      tapped, params, inputs, labels, weights: as in `forward_batch`; the model has a `suffix` or `shifted`.
      tap: its name.

    Returns:
      What the model says, and `[N, T, C] -> [N, T, D]`: `Jᵀ v` of the layers after the tap, in the
      model's own dtype. With `shifted` its layers run once for both, else those after it run twice.
    """
    if tapped.shifted is not None:
        shift = jax.eval_shape(tapped.forward, params, inputs)[1][tap]
        run = lambda z: tapped.shifted(params, inputs, {tap: z})  # noqa: E731  # pyright: ignore[reportOptionalCall]
        logits, pull_back, activations = jax.vjp(
            run, jnp.zeros(shift.shape, shift.dtype), has_aux=True
        )
    else:
        logits, activations = tapped.forward(params, inputs)
        assert tapped.suffix is not None, "a residual site has a suffix"
        rest = functools.partial(tapped.suffix, params, inputs)
        _, pull_back = jax.vjp(lambda z: rest({tap: z}), activations[tap])
    observed = _as_tokens(logits, activations, labels, weights)

    def pulled(errors_NxTxC: jax.Array) -> jax.Array:
        z = pull_back(errors_NxTxC.reshape(logits.shape).astype(logits.dtype))[0]
        return z.reshape(observed.activations[tap].shape).astype(jnp.float32)

    return observed, pulled


def check_examples(
    tapped: TappedModel, params: Params, inputs: Any, labels: np.ndarray, weights: np.ndarray
) -> None:
    """Refuse examples that do not fit each other or the model, before anything runs.

    Raises:
      ValueError: lengths or shapes that don't fit, or labels outside the classes.
    """
    if not len(inputs) == len(labels) == len(weights) or len(inputs) == 0:
        raise ValueError(
            f"inputs, labels and weights need one row an example and at least one: got "
            f"{len(inputs)}, {len(labels)}, {len(weights)}"
        )
    shape = jax.eval_shape(tapped.forward, params, inputs[:1])[0].shape
    if len(shape) == labels.ndim or (1, *labels.shape[1:]) != shape[: labels.ndim]:
        raise ValueError(
            f"logits of shape {shape} for one example do not fit labels of shape {labels.shape}: a "
            "classifier gives [N, C] and [N], a language model [N, T, C] and [N, T]"
        )
    counted = labels[labels != -1]
    if counted.size and (counted.min() < 0 or counted.max() >= shape[-1]):
        raise ValueError(
            f"labels run from {counted.min()} to {counted.max()}, but the model has {shape[-1]} "
            "classes"
        )


def _as_tokens(
    logits: jax.Array, activations: Activations, labels: jax.Array, weights: jax.Array
) -> Observed:
    """Float32, a classifier with its token axis, T = 1, and labels of −1 of weight 0."""
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        logits, labels, weights = logits[:, None], labels[:, None], weights[:, None]
    activations = {
        name: a.reshape(*labels.shape, -1).astype(jnp.float32) for name, a in activations.items()
    }
    counted = labels != -1
    return Observed(
        activations,
        logits,
        jnp.where(counted, labels, 0).astype(jnp.int32),
        weights.astype(jnp.float32) * counted,
    )
