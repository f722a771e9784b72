"""Measurements against float64, chunking and real residual sites."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stride_jax import operators as ops
from stride_jax.frozen import resolve
from stride_jax.measure import MeasureSettings, block_sizes, measure
from stride_jax.observed import forward_all, observed_source
from stride_jax.operators.basis import standardise
from stride_jax.runtime.execution import Execution
from stride_jax.settings import IndexSettings

SITE = ops.LogitSite(10)


@pytest.fixture(scope="module")
def scene(trained):
    seen = forward_all(trained.tapped, trained.params, trained.query)
    basis = ops.fit_basis(seen.activations, ops.BasisSettings(rank=6))
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(12, 7, 10)).astype(np.float32))
    return seen, ops.Operators(basis, a, jnp.ones(12))


def losses64(logits, labels):
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
    return total - np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_measurements_are_loss_differences(scene, scale):
    seen, operators = scene
    y = measure(SITE, operators, observed_source(seen, {}), MeasureSettings(scale=scale))
    b = np.concatenate(
        [
            np.asarray(standardise(operators.basis, seen.activations), np.float64)
            @ np.asarray(operators.basis.weights["projection"], np.float64),
            np.ones((len(seen), 1, 1)),
        ],
        axis=-1,
    )
    logits, labels = np.asarray(seen.logits_NxTxC, np.float64), np.asarray(seen.labels_NxT)
    for k in range(len(operators)):
        shift = b @ np.asarray(operators.a_KxRxO[k], np.float64) * scale
        exact = (losses64(logits, labels) - losses64(logits + shift, labels))[:, 0] / scale
        np.testing.assert_allclose(y[:, k], exact, rtol=1e-3, atol=1e-5)


def test_blocks_change_nothing_and_stay_in_memory(scene):
    seen, operators = scene
    source = observed_source(seen, {})
    whole = measure(SITE, operators, source)
    queries, subsets = block_sizes(len(seen), 12, 120, 4_000)
    assert queries * subsets * 120 <= 4_000
    blocks = measure(SITE, operators, source, execution=Execution(memory=16_000))
    np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())


def test_residual_site_runs_the_rest_of_the_network(trained):
    model, params, query = trained.tapped, trained.params, trained.query
    seen = forward_all(model, params, query.take(slice(9)))
    settings = IndexSettings(taps=("input",), sites=("hidden0",))
    site = resolve(model, params, query.inputs[:1], settings).sites["hidden0"]
    basis = ops.fit_basis({"input": seen.activations["input"]}, ops.BasisSettings(rank=3))
    a = np.random.default_rng(1).normal(size=(4, basis.rank, 24)).astype(np.float32)
    source = observed_source(seen, site.context(seen, query.inputs[:9]), params)
    whole = MeasureSettings(scale=1.0)
    y = measure(site, ops.Operators(basis, jnp.asarray(a), jnp.ones(4)), source, whole)
    b = np.asarray(ops.example_features(basis, seen.activations))[:, 0]
    params = jax.tree.map(np.asarray, params)
    for k in range(4):
        z = np.asarray(seen.activations["hidden0"])[:, 0] + b @ a[k]
        hidden = np.maximum(z @ params["dense1"]["kernel"] + params["dense1"]["bias"], 0)
        logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
        drop = losses64(seen.logits_NxTxC[:, 0], query.labels[:9]) - losses64(
            logits, query.labels[:9]
        )
        np.testing.assert_allclose(y[:, k], drop, rtol=1e-4, atol=1e-4)


def test_token_weights_pick_tokens(scene):
    seen, operators = scene
    halved = dataclasses.replace(seen, weights_NxT=seen.weights_NxT * 0.5)
    half, whole = (measure(SITE, operators, observed_source(o, {})) for o in (halved, seen))
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"scale=0.0"):
        MeasureSettings(scale=0.0)


def test_first_order_is_the_limit_of_small_steps_and_is_checked(scene, trained):
    seen, operators = scene
    source = observed_source(seen, {})
    exact = measure(SITE, operators, source, MeasureSettings("exact", scale=1e-4))
    small = Execution(memory=12_000)
    linear = measure(SITE, operators, source, MeasureSettings("first_order"), small)
    size = np.abs(exact).max()
    np.testing.assert_allclose(linear, exact, rtol=1e-2, atol=1e-3 * size)
    # Too large for exact blocks: `auto` goes first-order, after a check of a sample.
    auto = measure(SITE, operators, source, MeasureSettings(scale=1e-4, exact_limit=100))
    np.testing.assert_allclose(auto, linear, rtol=1e-4, atol=1e-5 * size)
    with pytest.raises(ValueError, match=r"differ from exact ones by .* lower the scale"):
        measure(SITE, operators, source, MeasureSettings(scale=1.0, exact_limit=100))
    query = trained.query
    settings = IndexSettings(taps=("input",), sites=("hidden0",))
    residual = resolve(trained.tapped, trained.params, query.inputs[:1], settings).sites["hidden0"]
    source = observed_source(seen, residual.context(seen, query.inputs), trained.params)
    a = np.random.default_rng(3).normal(size=(4, 7, 24)).astype(np.float32)
    inner = ops.Operators(operators.basis, jnp.asarray(a), jnp.arange(1.0, 5.0))
    exact, linear = (
        measure(residual, inner, source, MeasureSettings(form, scale=1e-4))
        for form in ("exact", "first_order")
    )
    np.testing.assert_allclose(linear, exact, rtol=2e-2, atol=5e-3 * np.abs(exact).max())
