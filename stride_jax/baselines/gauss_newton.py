"""Influence with the damped Gauss–Newton system solved by iteration: conjugate gradients, or ASTRA.

EK-FAC's inverse is the first step of both; iterations mend what its Kronecker form gets wrong,
within layers and between them.

| solver | steps use | source |
|---|---|---|
| `cg` | the whole curvature sample | for influence: Koh and Liang, 2017 |
| `astra` | a batch each, with momentum | Wang et al., ASTRA, 2025 |

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines import ekfac
from stride_jax.baselines.ekfac import EkfacSettings
from stride_jax.baselines.model import Model, batches
from stride_jax.baselines.solved import Gradients, inner, scores
from stride_jax.data import Examples

Product = Callable[[Gradients], Gradients]


@dataclasses.dataclass(frozen=True)
class GaussNewtonSettings:
    """The system, and how it is solved.

    Attributes:
      damping: damping of each layer, relative to the mean of its corrected eigenvalues.
      solver: `cg` or `astra`.
      steps: iterations.
      examples: training examples drawn once that make the curvature; 0 for all.
      curvature_batch: examples of an astra step, drawn anew for each.
      rate, momentum: of astra; the rate falls to zero along a cosine.
      queries_at_once: queries whose products are taken together.
      batch_size: examples per pass.
      max_bytes: bytes of one set of the queries' gradients in memory; a solver keeps five.
      seed: random seed of what is drawn.
    """

    damping: float = 1e-1
    solver: str = "cg"
    steps: int = 8
    examples: int = 0
    curvature_batch: int = 256
    rate: float = 0.3
    momentum: float = 0.5
    queries_at_once: int = 32
    batch_size: int = 128
    max_bytes: int = 1 << 28
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver not in ("cg", "astra"):
            raise ValueError(f"solver={self.solver!r}: use 'cg' or 'astra'")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")


@functools.partial(jax.jit, static_argnames=("model", "at_once"))
def _add_products(
    total: Gradients,
    model: Model,
    params: Any,
    batch: tuple[jax.Array, jax.Array, jax.Array],
    held: Gradients,
    at_once: int,
) -> Gradients:
    """`total + Σ_i J_iᵀ H_i J_i v` over a batch's examples i, of every query's v."""
    x, y, mask = batch

    def outputs(along: Gradients) -> jax.Array:
        return model.logits(
            params, x, lambda name, a, out: out + (a @ along[name]).reshape(out.shape)
        )

    still = {n: jnp.zeros(v.shape[1:], v.dtype) for n, v in held.items()}
    logits, forward = jax.linearize(outputs, still)
    _, backward = jax.vjp(outputs, still)
    targets = model.objective.targets(y, logits)

    def loss(o: jax.Array) -> jax.Array:
        rows = model.objective.loss(o, targets)
        return (rows * mask.reshape(-1, *(1,) * (rows.ndim - 1))).sum()

    _, bend = jax.linearize(jax.grad(loss), logits)
    one = lambda v: backward(bend(forward(v)))[0]  # noqa: E731
    products = jax.lax.map(one, held, batch_size=min(at_once, len(jax.tree.leaves(held)[0])))
    return jax.tree.map(jnp.add, total, products)


def gauss_newton(model: Model, sample: Examples, settings: GaussNewtonSettings) -> Product:
    """`v -> mean_i J_iᵀ H_i J_i v`, J of an example's logits, H of its loss in those."""
    parts = batches(sample.inputs, sample.labels, settings.batch_size)

    def product(held: Gradients) -> Gradients:
        total = jax.tree.map(jnp.zeros_like, held)
        for _, *batch in parts:
            total = _add_products(
                total, model, model.params, tuple(batch), held, settings.queries_at_once
            )
        return jax.tree.map(lambda v: v / len(sample), total)

    return product


def _plus(a: Gradients, scale: jax.Array | float, b: Gradients) -> Gradients:
    """`a + scale b`, a scale of each query's or one."""
    by = jnp.reshape(scale, (-1, 1, 1))
    return jax.tree.map(lambda u, v: u + by * v, a, b)


def conjugate_gradients(
    product: Product, inverse: Product, right: Gradients, steps: int
) -> Gradients:
    """`A^{-1} right` of every query on its own.

    Args:
      product: `v -> A v`, symmetric and positive.
      inverse: preconditioner, `v -> B^{-1} v` with B near A.
      right: right-hand sides.
      steps: iterations; a query that has converged stays as it is.
    """
    solved = jax.tree.map(jnp.zeros_like, right)
    residual, turned = right, inverse(right)
    direction, now = turned, inner(right, turned)
    for _ in range(steps):
        bent = product(direction)
        length = _ratio(now, inner(direction, bent))
        solved = _plus(solved, length, direction)
        residual = _plus(residual, -length, bent)
        turned = inverse(residual)
        before, now = now, inner(residual, turned)
        direction = _plus(turned, _ratio(now, before), direction)
    return solved


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def descent(
    products: Callable[[int], Product],
    inverse: Product,
    right: Gradients,
    settings: GaussNewtonSettings,
) -> Gradients:
    """`A^{-1} right` by preconditioned descent with momentum; step s sees `products(s)`."""
    solved, speed = inverse(right), jax.tree.map(jnp.zeros_like, right)
    for s in range(settings.steps):
        residual = _plus(products(s)(solved), -1.0, right)
        speed = _plus(inverse(residual), settings.momentum, speed)
        rate = settings.rate * 0.5 * (1 + np.cos(np.pi * s / settings.steps))
        solved = _plus(solved, -rate, speed)
    return solved


def fit(model: Model, train: Examples, settings: GaussNewtonSettings) -> dict[str, Any]:
    """EK-FAC's eigenbases and corrected eigenvalues, the preconditioner."""
    return ekfac.fit(model, train, EkfacSettings(batch_size=settings.batch_size))


def score(
    state: dict[str, Any],
    model: Model,
    train: Examples,
    query: Examples,
    settings: GaussNewtonSettings,
) -> np.ndarray:
    """`w_i = <(C + Λ)^{-1} G_x, G_i>`, C the mean Gauss–Newton matrix over all linear layers.

    Returns:
      `[Q, N]` float32.
    """
    rng = np.random.default_rng(settings.seed)
    ridge = ekfac.dampings(state, settings.damping)
    inverse = ekfac.inverse(state, settings.damping)

    def damped(sample: Examples) -> Product:
        product = gauss_newton(model, sample, settings)
        return lambda v: {n: c + ridge[n] * v[n] for n, c in product(v).items()}

    def drawn(count: int) -> Examples:
        rows = rng.choice(len(train), min(count, len(train)), replace=False)
        return Examples(train.inputs[rows], train.labels[rows], train.ids[rows])

    if settings.solver == "cg":
        whole = damped(drawn(settings.examples) if settings.examples else train)

        def solve(right: Gradients) -> Gradients:
            return conjugate_gradients(whole, inverse, right, settings.steps)
    else:

        def solve(right: Gradients) -> Gradients:
            steps = lambda _: damped(drawn(settings.curvature_batch))  # noqa: E731
            return descent(steps, inverse, right, settings)

    return scores(
        model, train, query, solve, batch_size=settings.batch_size, max_bytes=settings.max_bytes
    )
