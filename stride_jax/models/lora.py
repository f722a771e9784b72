"""Low-rank fine-tuning: a matrix W becomes `W + (alpha / r) A B`, and A and B alone are trained.

Hu et al., LoRA (2021). Training holds the model and its factors side by side, as one tree, so that
whatever trains models trains these; what it leaves is a model like any other, its factors added.

Letters of its own: I inputs and O outputs of a matrix, r rank.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

Params = Any

_MODEL, _FACTORS = "model", "factors"


@dataclasses.dataclass(frozen=True)
class LoRASettings:
    """What is trained of a model.

    Attributes:
      rank: r of every matrix.
      alpha: factor of `A B`, divided by r.
      layers: names of the layers whose matrices are, such as `("query", "value")`; none for all of
        them but the head.
    """

    rank: int = 8
    alpha: float = 16.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1; lora=None trains it all")


def opened(params: Params, settings: LoRASettings | None, key: jax.Array) -> Params:
    """The parameters with factors beside them: A drawn, B zero, so that nothing changes yet.

    Args:
      params: those of a model.
      settings: which matrices, and r; None trains them all, and returns `params`.
      key: key of the draw.

    Raises:
      ValueError: a name of no layer that has a matrix (lists those there are).
    """
    if settings is None:
        return params
    factors = {}
    for i, (path, kernel_IxO) in enumerate(sorted(_chosen(params, settings).items())):
        inputs, outputs = kernel_IxO.shape
        a_Ixr = jax.random.normal(jax.random.fold_in(key, i), (inputs, settings.rank))
        zeros_rxO = jnp.zeros((settings.rank, outputs), kernel_IxO.dtype)
        factors["/".join(path)] = {"a": a_Ixr / jnp.sqrt(float(inputs)), "b": zeros_rxO}
    return {_MODEL: params, _FACTORS: factors}


def closed(params: Params, settings: LoRASettings | None) -> Params:
    """The model's own parameters, its factors added to them; the inverse of `opened`; traceable."""
    if settings is None:
        return params
    flat, scale = _flat(params[_MODEL]), settings.alpha / settings.rank
    for name, own in params[_FACTORS].items():
        path = tuple(name.split("/"))
        flat[path] = flat[path] + (scale * own["a"] @ own["b"]).astype(flat[path].dtype)
    return unflatten_dict(flat)


def trained(tx: optax.GradientTransformation, settings: LoRASettings | None) -> Any:
    """An optimiser that leaves the model itself as it is, with moments for its factors alone."""
    if settings is None:
        return tx
    return optax.multi_transform({_FACTORS: tx, _MODEL: optax.set_to_zero()}, _parts)


def _parts(params: Params) -> Any:
    """Of each array, which of the two it is of."""
    return {part: jax.tree.map(lambda _, own=part: own, tree) for part, tree in params.items()}


def through(
    forward: Callable[[Params, jax.Array], jax.Array], settings: LoRASettings | None
) -> Callable[[Params, jax.Array], jax.Array]:
    """`(opened parameters, inputs) -> logits`."""
    if settings is None:
        return forward
    return lambda params, x: forward(closed(params, settings), x)


def _flat(params: Params) -> dict[tuple[str, ...], Any]:
    return dict(flatten_dict(params))  # pyright: ignore[reportReturnType]


def _chosen(params: Params, settings: LoRASettings) -> dict[tuple[str, ...], Any]:
    """Matrices that get factors, by their path."""
    flat = _flat(params)
    kernels = {p: v for p, v in flat.items() if p[-1] == "kernel" and v.ndim == 2}
    names = dict.fromkeys(path[-2] for path in kernels if len(path) > 1)
    if missing := [name for name in settings.layers if name not in names]:
        raise ValueError(
            f"lora.layers has {missing[0]!r}, but this model's layers with a matrix are "
            f"{', '.join(names)}"
        )
    wanted = settings.layers or tuple(name for name in names if name != "head")
    return {path: v for path, v in kernels.items() if len(path) > 1 and path[-2] in wanted}
