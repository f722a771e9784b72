"""From a frozen model and its training set to operators (docs/method.md §3 – 5)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import operators as ops
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel, evenly_spaced, on_one_device
from stride_jax.observed import as_training
from stride_jax.operators.gradients import squared_errors
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.keep import nowhere

Operators = dict[str, ops.Operators]
Moments = dict[str, ops.Moments]


def fit_operators(
    frozen: FrozenModel,
    examples: Examples,
    subsets_Nxd: jax.Array,
    execution: Execution = Execution(),
) -> tuple[Operators, Moments, np.ndarray]:
    """Fit the basis, then every site's K operators, in closed form or by training.

    Returns:
      Operators and moments by site (joint training has no moments), and `||e_i||` of the
      examples, doubted as the closed form does, `[N]`.
    """
    settings = frozen.settings
    if settings.fit == "joint":
        return _train(frozen, examples, subsets_Nxd, execution)
    basis = _fit_basis(frozen, examples, execution)
    rotations = _rotations(frozen, examples, basis, execution)
    moments, residual_N = pass_over(frozen, examples, subsets_Nxd, (basis, rotations), execution)
    return solve_operators(frozen, basis, moments), moments, residual_N


def _train(
    frozen: FrozenModel, examples: Examples, subsets_Nxd: jax.Array, execution: Execution
) -> tuple[Operators, Moments, np.ndarray]:
    settings = frozen.settings
    chunk = frozen.observe(examples, execution)
    observed = chunk.observed
    basis = ops.fit_basis({n: observed.activations[n] for n in settings.taps}, settings.basis)
    operators = {}
    for name, site in frozen.sites.items():
        source = frozen.observed_source(name, chunk)
        operators[name], _ = ops.train_jointly(
            settings.design, subsets_Nxd, site, basis, source, settings.joint, execution
        )
    read = as_training(observed, settings.closed_form.doubt)
    errors = squared_errors(jax.nn.softmax(read.logits_NxTxC), read.labels_NxT)
    return operators, {}, np.sqrt((read.weights_NxT * errors).sum(axis=1))


def _fit_basis(frozen: FrozenModel, examples: Examples, execution: Execution) -> ops.Basis:
    """The features' basis, from evenly spaced training examples."""
    settings = frozen.settings
    few = evenly_spaced(examples, settings.basis.sample)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in settings.taps}
    for chunk in frozen.chunks(few, on_one_device(frozen.params, execution), "basis"):
        counted = np.asarray(chunk.observed.weights_NxT) > 0
        for name in settings.taps:
            parts[name].append(np.asarray(chunk.observed.activations[name])[counted][:, None])
    return ops.fit_basis({n: np.concatenate(v) for n, v in parts.items()}, settings.basis)


def _rotations(
    frozen: FrozenModel, examples: Examples, basis: ops.Basis, execution: Execution
) -> dict[str, Any]:
    """Eigenvectors for sites whose curvature needs them before the pass, from the same sample."""
    wanting = {name: "kronecker" for name, form in frozen.forms.items() if form == "eigen"}
    if not wanting:
        return {}
    few = evenly_spaced(examples, frozen.settings.basis.sample)
    # Factors do not depend on the membership.
    rows = jnp.arange(len(few))[:, None] % frozen.settings.design.num_subsets
    execution = dataclasses.replace(on_one_device(frozen.params, execution), keep=nowhere)
    factors = dataclasses.replace(frozen, forms=wanting)
    moments, _ = pass_over(factors, few, rows, (basis, {}), execution)
    return {name: ops.eigenbases(sums) for name, sums in moments.items()}


def pass_over(
    frozen: FrozenModel,
    examples: Examples,
    subsets_Nxd: jax.Array,
    fitted: tuple[ops.Basis, dict[str, Any]],
    execution: Execution,
) -> tuple[Moments, np.ndarray]:
    """One pass over the examples for each site with a form: its moments; and `||e_i||`.

    `fitted` are the basis, and the rotations of sites whose form is `eigen`.
    """
    basis, rotations = fitted
    source, design = frozen.source(examples, training=True), frozen.settings.design
    moments, residual_N = {}, np.zeros(0, np.float32)
    for name, form in frozen.forms.items():
        curvature = ops.Curvature(form, rotations.get(name))
        moments[name], residual_N = ops.accumulate(
            design, subsets_Nxd, frozen.sites[name], basis, source, curvature, execution
        )
    return moments, residual_N


def solve_operators(frozen: FrozenModel, basis: ops.Basis, moments: Moments) -> Operators:
    settings = frozen.settings.closed_form
    return {
        name: ops.closed_form(
            basis, sums, settings, frozen.signs_C if name == "logit" else None
        )
        for name, sums in moments.items()
    }  # fmt: skip
