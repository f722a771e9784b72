"""Measurements against float64, chunking and real residual sites."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stride_jax import operators as ops
from stride_jax.measure import MeasureSettings, block_sizes, measure
from stride_jax.observed import forward_all
from stride_jax.operators.basis import standardise


@pytest.fixture(scope="module")
def scene(trained):
    seen = forward_all(trained.tapped, trained.params, trained.query.inputs, trained.query.labels)
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
    y = measure(ops.logit_site(seen), operators, (seen, {}), MeasureSettings(scale=scale))
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
    site = ops.logit_site(seen)
    whole = measure(site, operators, (seen, {}))
    small = MeasureSettings(max_bytes=4_000)
    queries, subsets = block_sizes(len(seen), 12, 120, small.max_bytes)
    assert queries * subsets * 120 <= 4_000
    blocks = measure(site, operators, (seen, {}), small)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())


def test_residual_site_runs_the_rest_of_the_network(trained):
    model, params, query = trained.tapped, trained.params, trained.query
    seen = forward_all(model, params, query.inputs[:9], query.labels[:9])
    site = ops.residual_site(model, params, seen, query.inputs[:1], "hidden0")
    basis = ops.fit_basis({"input": seen.activations["input"]}, ops.BasisSettings(rank=3))
    a = np.random.default_rng(1).normal(size=(4, basis.rank, 24)).astype(np.float32)
    context = ops.context(site, seen, query.inputs[:9])
    whole = MeasureSettings(scale=1.0)
    y = measure(site, ops.Operators(basis, jnp.asarray(a), jnp.ones(4)), (seen, context), whole)
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
    site = ops.logit_site(seen)
    np.testing.assert_allclose(
        measure(site, operators, (halved, {})), measure(site, operators, (seen, {})) / 2, rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"scale=0.0"):
        MeasureSettings(scale=0.0)


def test_first_order_is_the_limit_of_small_steps_and_is_checked(scene, trained):
    seen, operators = scene
    site = ops.logit_site(seen)
    exact = measure(site, operators, (seen, {}), MeasureSettings("exact", scale=1e-4))
    linear = measure(site, operators, (seen, {}), MeasureSettings("first_order", max_bytes=3_000))
    size = np.abs(exact).max()
    np.testing.assert_allclose(linear, exact, rtol=1e-2, atol=1e-3 * size)
    # Too large for exact blocks: `auto` goes first-order, after a look at a sample.
    auto = measure(site, operators, (seen, {}), MeasureSettings(scale=1e-4, max_bytes=1_000))
    np.testing.assert_allclose(auto, linear, rtol=1e-4, atol=1e-5 * size)
    with pytest.raises(ValueError, match=r"differ from exact ones by .* lower the scale"):
        measure(site, operators, (seen, {}), MeasureSettings(scale=1.0, max_bytes=1_000))
    query = trained.query
    residual = ops.residual_site(trained.tapped, trained.params, seen, query.inputs[:1], "hidden0")
    context = ops.context(residual, seen, query.inputs)
    a = np.random.default_rng(3).normal(size=(4, 7, 24)).astype(np.float32)
    inner = ops.Operators(operators.basis, jnp.asarray(a), jnp.arange(1.0, 5.0))
    exact, linear = (
        measure(residual, inner, (seen, context), MeasureSettings(form, scale=1e-4))
        for form in ("exact", "first_order")
    )
    np.testing.assert_allclose(linear, exact, rtol=2e-2, atol=5e-3 * np.abs(exact).max())
