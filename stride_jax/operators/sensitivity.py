"""Which tap the basis should read, chosen without retraining.

Letter of its own: n tokens that count.

A tap whose variation moves the logits most carries what tells examples apart; taps that move them
little, such as the last layers of a network that has memorised its training set, only dilute the
basis (docs/lab.md has the figures).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.inputs import Inputs, on_device, read_rows
from stride_jax.observed import Observed
from stride_jax.taps import Activations, Params, Suffix, TappedModel


@functools.partial(jax.jit, static_argnames="suffix")
def _squared_jacobian(
    suffix: Suffix, params: Params, x: Inputs, tap: Activations, signs: jax.Array
) -> jax.Array:
    """`E ||∂o / ∂h||²_F` for the activation in `tap`, from random output directions."""
    _, pull_back = jax.vjp(lambda replace: suffix(params, x, replace), tap)
    (name,) = tap

    def squares(one: jax.Array) -> jax.Array:
        (pulled,) = pull_back(one)
        return jnp.sum((pulled[name] ** 2).astype(jnp.float32))

    # One after the other: all at once took a CPU twice as long to compile and five times to run.
    return jax.lax.map(squares, signs).sum() / (signs.shape[0] * signs.shape[1])


def tap_energies(
    tapped: TappedModel,
    params: Params,
    observed: Observed,
    inputs: Inputs,
    *,
    sample: int = 256,
    probes: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """Energy of each tap: how far its variation can move the logits.

    `tr Cov(h) · E ||∂o / ∂h||²_F`: the variance of the tap over the training set times the mean
    squared Jacobian of the rest of the network (Hutchinson's estimate), one vjp per tap and probe.

    Args:
      tapped: model with a suffix form.
      params: parameters of the model.
      observed: the model's output on the training set, `{tap: [N, T, D_tap]}`.
      inputs: inputs of the same examples, `[N, ...]`.
      sample: examples drawn for the Jacobians.
      probes: random output directions per example.
      seed: random seed of the draws.

    Returns:
      `{tap: energy}`.

    Raises:
      ValueError: the model has no suffix form.
    """
    suffix = tapped.suffix
    if suffix is None:
        raise ValueError(
            "choosing taps needs the rest of the network as a function of each tap: every adapter "
            "gives the tapped model a suffix; give from_function one, or name the taps"
        )
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(observed))[:sample]
    x = on_device(read_rows(inputs, rows))
    logits, activations = tapped(params, x)
    # Drawn on the host: compiling the draw took a CPU longer than all of this.
    signs = jnp.asarray(rng.choice([-1.0, 1.0], (probes, *logits.shape)), logits.dtype)

    counted = np.asarray(observed.weights_NxT) > 0
    energies = {}
    for name, value in activations.items():
        h_nxD = np.asarray(observed.activations[name])[counted]
        variance = float(h_nxD.var(axis=0).sum())
        energies[name] = variance * float(
            _squared_jacobian(suffix, params, x, {name: value}, signs)
        )
    return energies


def choose_tap(energies: dict[str, float]) -> str:
    """The tap of the largest energy.

    >>> choose_tap({"input": 3.0, "hidden0": 2.0})
    'input'
    """
    return max(sorted(energies), key=lambda name: energies[name])
