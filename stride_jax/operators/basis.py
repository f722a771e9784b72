"""The shared basis `B_psi`: tapped activations to R features.

Taps are concatenated, each centred and divided by the mean standard deviation of its units, then
projected to R − 1 directions; a constant feature is added (docs/method.md §3.1). Scaling each tap
to unit total variance instead lost half of the score.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.runtime.programs import shape
from stride_jax.runtime.settings import check_types
from stride_jax.taps import Activations


@dataclasses.dataclass(frozen=True)
class BasisSettings:
    """How activations become features.

    Attributes:
      rank: R − 1, principal components (fewer if the data have fewer); the constant is added.
      kind: `linear`: principal components; `random`: random orthogonal directions; `mlp`: linear
        plus a small MLP that starts at zero and learns in joint training.
      hidden: hidden units of that MLP.
      sample: tokens drawn to fit the components, all if there are fewer.
      seed: random seed of the draw and of the MLP.
    """

    rank: int = 256
    kind: str = "linear"
    hidden: int = 64
    sample: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        if self.kind not in ("linear", "random", "mlp"):
            raise ValueError(f"basis kind={self.kind!r}: use 'linear', 'random' or 'mlp'")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Basis:
    """psi: centring, scaling and projection, as one pytree.

    Attributes:
      mean: mean activation of each tap, `{tap: [D_tap]}`.
      scale: mean standard deviation of each tap's units, `{tap: []}`.
      weights: what joint training may train: `projection` `[D, R − 1]`, and for an MLP basis
        `inner` `[D, hidden]`, `bias` `[hidden]` and `outer` `[hidden, R − 1]`; D is the width of
        all taps together.
    """

    mean: Activations
    scale: Activations
    weights: dict[str, jax.Array]

    @property
    def rank(self) -> int:
        """R: features, the constant included."""
        return self.weights["projection"].shape[1] + 1


def standardise(basis: Basis, activations: Activations) -> jax.Array:
    """Concatenated taps, centred and scaled: `[..., D]`, taps in the basis' own order.

    Raises:
      ValueError: a tap the basis was fitted on is missing.
    """
    if missing := set(basis.mean) - set(activations):
        raise ValueError(
            f"activations lack the taps {sorted(missing)} that the basis was fitted on"
        )
    columns = []
    for name in sorted(basis.mean):
        mean = basis.mean[name].reshape((1,) * (activations[name].ndim - 1) + (-1,))
        columns.append((activations[name] - mean) / basis.scale[name])
    return jnp.concatenate(columns, axis=-1)


def features(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """`B_psi` of standardised activations.

    `b(x) = [x P + relu(x V + c) U, 1]`, the second term for an MLP basis alone.

    Args:
      weights: `Basis.weights`.
      x: `[..., D]` from `standardise`.

    Returns:
      `[..., R]`.
    """
    b = x @ weights["projection"]
    if "inner" in weights:
        bias = weights["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
        b += jax.nn.relu(x @ weights["inner"] + bias) @ weights["outer"]
    return jnp.concatenate([b, jnp.ones((*b.shape[:-1], 1), b.dtype)], axis=-1)


def example_features(basis: Basis, activations: Activations) -> jax.Array:
    """Features of examples under a basis, `[N, T, R]`, the constant among them."""
    return features(basis.weights, standardise(basis, activations))


def _principal_components(x: np.ndarray, rank: int) -> np.ndarray:
    """Leading directions of centred rows, entries of largest magnitude positive, `[D, rank]`."""
    values, vectors = np.linalg.eigh((x.T @ x / len(x)).astype(np.float64))
    # Directions without variance carry nothing but rounding.
    rank = min(rank, int((values > values[-1] * 1e-7).sum()))
    projection = vectors[:, ::-1][:, :rank]
    return projection * np.sign(projection[np.abs(projection).argmax(axis=0), range(rank)])


def fit_basis(activations: Mapping[str, jax.Array | np.ndarray], settings: BasisSettings) -> Basis:
    """Fit centring, scaling and principal components on training activations.

    Args:
      activations: `{tap: [N, T, D_tap]}`.
      settings: rank and kind.

    Returns:
      A basis whose projection holds the leading `min(settings.rank, rank of the data)` principal
      directions, or as many random ones.

    Raises:
      ValueError: no taps, or activations without any variance.

    >>> x = jax.random.normal(jax.random.key(0), (50, 1, 8))
    >>> basis = fit_basis({"input": x}, BasisSettings(rank=3))
    >>> features(basis.weights, standardise(basis, {"input": x})).shape
    (50, 1, 4)
    """
    if not activations:
        raise ValueError("there are no activations: a basis needs at least one tap")
    rng = np.random.default_rng(settings.seed)
    first = next(iter(activations.values()))
    tokens = first.shape[0] * first.shape[1]
    rows = np.arange(tokens)
    if tokens > settings.sample:
        rows = np.sort(rng.choice(tokens, settings.sample, replace=False))
    mean, scale, columns = {}, {}, []
    for name in sorted(activations):
        x = np.asarray(activations[name]).reshape(tokens, -1)[rows]
        mean[name] = x.mean(axis=0)
        scale[name] = x.std(axis=0).mean()
        if not scale[name] > 0:
            raise ValueError(f"tap {name!r} is constant over the training set; leave it out")
        columns.append((x - mean[name]) / scale[name])
    x = np.concatenate(columns, axis=1)
    if settings.kind == "random":
        projection = np.linalg.qr(rng.normal(size=(x.shape[1], min(settings.rank, x.shape[1]))))[0]
    else:
        projection = _principal_components(x, settings.rank)
    rank = projection.shape[1]
    weights: dict[str, Any] = {"projection": projection.astype(np.float32)}
    if settings.kind == "mlp":
        dim = x.shape[1]
        weights["inner"] = rng.normal(0, dim**-0.5, (dim, settings.hidden)).astype(np.float32)
        weights["bias"] = np.zeros(settings.hidden, np.float32)
        weights["outer"] = np.zeros((settings.hidden, rank), np.float32)
    return jax.tree.map(jnp.asarray, Basis(mean, scale, weights))


def basis_shapes(settings: BasisSettings, widths: Mapping[str, int]) -> Basis:
    """Shapes of the basis of taps of these widths, of the largest possible rank.

    >>> basis_shapes(BasisSettings(rank=3), {"input": 8}).rank
    4
    """
    depth = sum(widths.values())
    rank = min(settings.rank, depth)
    weights = {"projection": shape((depth, rank))}
    if settings.kind == "mlp":
        hidden = settings.hidden
        weights |= {"inner": shape((depth, hidden)), "bias": shape((hidden,))}
        weights |= {"outer": shape((hidden, rank))}
    mean = {name: shape((width,)) for name, width in widths.items()}
    return Basis(mean, {name: shape(()) for name in widths}, weights)
