"""The model that every baseline is given, and per-example gradients layer by layer.

A linear layer's gradient is `G_i = Σ_t a_{i,t} δ_{i,t}ᵀ`: inputs times output errors. One forward
and one backward pass of the whole batch give a and δ of every layer, so no per-example backward
pass is ever run, and many methods never form G at all.

Letters of the baselines' own: I inputs and J outputs of a layer, P parameters of all linear layers,
H columns of a projection, c a checkpoint.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stride_jax.adapters import from_model
from stride_jax.models.train import TrainSettings
from stride_jax.objectives import CROSS_ENTROPY, Objective
from stride_jax.taps import TappedModel, with_objective, with_temperature

Layers = dict[str, tuple[jax.Array, jax.Array]]
"""`{layer: (a_BxTxI, δ_BxTxJ)}`; a has a column of ones where the layer has a bias."""

OfOutputs = Callable[[jax.Array, Any], jax.Array]
"""`(logits, labels) -> [B]`, or `[B, T]` for tokens, whose gradient a method uses."""

Added = Callable[[str, jax.Array, jax.Array], jax.Array]
"""`(layer's name, a_BxTxI, output) -> output` that goes on in its place."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained model as gradient methods read it.

    Attributes:
      module: linen module whose call returns `(logits, activations)`.
      checkpoints: parameters along training, the base model last.
      learning_rates: learning rate of the optimiser at each checkpoint.
      temperature: number that the logits are divided by, for every method alike.
      objective: the loss that it was trained with; for squared error with the noise's variance.
      recipe: how it was trained, for methods that follow the training; None where nobody knows.
    """

    module: nn.Module
    checkpoints: tuple[Any, ...]
    learning_rates: tuple[float, ...] = (1.0,)
    temperature: float = 1.0
    objective: Objective = CROSS_ENTROPY
    recipe: TrainSettings | None = None

    def __post_init__(self) -> None:
        if len(self.checkpoints) != len(self.learning_rates) or not self.checkpoints:
            raise ValueError(
                f"{len(self.checkpoints)} checkpoints and {len(self.learning_rates)} learning "
                "rates: give one of each per checkpoint, and at least one"
            )

    @property
    def params(self) -> Any:
        """The base model's parameters."""
        return self.checkpoints[-1]

    @property
    def tapped(self) -> TappedModel:
        """The calibrated model with all its taps."""
        cooled = with_temperature(from_model(self.module), self.temperature)
        return with_objective(cooled, self.objective)

    def layer_pass(
        self, params: Any, inputs: Any, labels: Any, of: OfOutputs | None = None
    ) -> Layers:
        """Inputs and errors of every linear layer, `∂ f / ∂ output`, f the loss or `of`. Traceable.

        Dense layers have T = 1; a convolution has a token per output pixel, its input the patch.
        A token that moves nothing in any layer, as padding does, has inputs of nought: gradients
        are the same, and a mean of `a aᵀ` over tokens is one over those that say something.
        Scales and offsets of normalisations are left out, as K-FAC methods leave them.
        """

        def run(errors: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
            layers: dict[str, Any] = {}

            def add(name: str, a: jax.Array, out: jax.Array) -> jax.Array:
                layers[name] = (a, out)
                return out + errors[name] if name in errors else out

            logits = self.logits(params, inputs, add)
            f = self.objective.loss if of is None else of
            targets = None if labels is None else self.objective.targets(labels, logits)
            return f(logits, targets).sum(), layers  # pyright: ignore[reportArgumentType]

        _, shapes = jax.eval_shape(run, {})
        zeros = {name: jnp.zeros(out.shape, out.dtype) for name, (_, out) in shapes.items()}
        errors, layers = jax.grad(run, has_aux=True)(zeros)
        return _without_padding(
            {
                name: (a, errors[name].reshape(*a.shape[:2], errors[name].shape[-1]))
                for name, (a, _) in layers.items()
            }
        )

    def logits(self, params: Any, inputs: Any, add: Added | None = None) -> jax.Array:
        """Calibrated logits, `[B, C]`, where `add` may change every linear layer's. Traceable."""

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            out, layer = call(*args, **kwargs), context.module
            if context.method_name != "__call__" or not isinstance(layer, (nn.Dense, nn.Conv)):
                return out
            return (
                out
                if add is None
                else add("/".join(layer.path), _layer_inputs(layer, args[0]), out)
            )

        with nn.intercept_methods(intercept):
            logits: Any = self.module.apply({"params": params}, inputs)[0]
        return _with_outputs(logits) / self.temperature

    def losses(self, params: Any, inputs: Any, labels: Any) -> jax.Array:
        """Calibrated losses, `[B]` or `[B, T]`. Traceable."""
        logits = self.logits(params, inputs)
        return self.objective.loss(logits, self.objective.targets(labels, logits))


def _without_padding(layers: Layers) -> Layers:
    """Layers in which tokens whose errors are nought in all layers of as many tokens have no input.

    A prompt's tokens move an answer through attention: they stay, in its last layers too.
    """
    moves: dict[int, jax.Array] = {}
    for _, d in layers.values():
        own_BxT = (d != 0).any(axis=-1)
        moves[d.shape[1]] = moves.get(d.shape[1], jnp.zeros_like(own_BxT)) | own_BxT
    return {
        name: (a if a.shape[1] == 1 else jnp.where(moves[a.shape[1]][..., None], a, 0), d)
        for name, (a, d) in layers.items()
    }


def _with_outputs(logits: jax.Array) -> jax.Array:
    """A single number per example as one output."""
    return logits[:, None] if logits.ndim == 1 else logits


def _layer_inputs(layer: nn.Dense | nn.Conv, x: jax.Array) -> jax.Array:
    """`a_BxTxI`: factor of the kernel, with a one appended for the bias."""
    if isinstance(layer, nn.Conv):
        strides = layer.strides or 1
        patches = jax.lax.conv_general_dilated_patches(
            x,
            layer.kernel_size,  # pyright: ignore[reportArgumentType]
            window_strides=(strides,) * 2 if isinstance(strides, int) else strides,
            padding=layer.padding,  # pyright: ignore[reportArgumentType]
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        a = patches.reshape(x.shape[0], -1, patches.shape[-1])
    else:
        a = x.reshape(x.shape[0], -1, x.shape[-1])
    if layer.use_bias:
        a = jnp.concatenate([a, jnp.ones((*a.shape[:2], 1), a.dtype)], axis=-1)
    return a


def layer_gradients(layers: Layers) -> dict[str, jax.Array]:
    """`G_BxIxJ = Σ_t a_t δ_tᵀ` of every layer."""
    return {name: jnp.einsum("bti,bto->bio", a, d) for name, (a, d) in layers.items()}


def flat_gradients(layers: Layers) -> jax.Array:
    """All layers' gradients of each example, flattened, `[B, P]`."""
    grads = layer_gradients(layers)
    return jnp.concatenate([g.reshape(g.shape[0], -1) for g in grads.values()], axis=1)


def batches(
    inputs: np.ndarray, labels: np.ndarray, size: int
) -> list[tuple[int, jax.Array, jax.Array, jax.Array]]:
    """`(start, inputs, labels, mask)` of equal size; the last is padded and masked."""
    out = []
    for start in range(0, len(labels), size):
        x, y = inputs[start : start + size], labels[start : start + size]
        pad = min(size, len(labels)) - len(y)
        x = np.concatenate([x, np.repeat(x[-1:], pad, axis=0)])
        y = np.concatenate([y, np.repeat(y[-1:], pad, axis=0)])
        mask = (np.arange(len(y)) < len(y) - pad).astype(np.float32)
        out.append((start, jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask)))
    return out
