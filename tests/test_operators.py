"""Losses against scalar loops, sites against each other, training by its invariances."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.decomposition

from stride_jax import operators as ops
from stride_jax import taps
from stride_jax.design import Design, members, membership, subset_sum
from stride_jax.frozen import resolve
from stride_jax.objectives.cross_entropy import loss_drop
from stride_jax.observed import Observed, forward_all, observed_source
from stride_jax.operators import joint, losses
from stride_jax.operators.basis import features, standardise
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.settings import IndexSettings


def softmax(o):
    e = [math.exp(v - max(o)) for v in o]
    return [v / sum(e) for v in e]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "shift": rng.normal(size=(5, 3, 4)),
        "logits": rng.normal(size=(5, 3, 4)),
        "labels": rng.integers(0, 4, (5, 3)),
        "weights": rng.random((5, 3)),
        "mask": np.array([1.0, 1, 0, 1, 0]),
    }


def observed(batch):
    shift, logits, labels, weights, mask = (jnp.asarray(v) for v in batch.values())
    return shift, Observed({}, logits, labels, weights), mask


def test_fidelity_is_the_members_mean_cross_entropy(batch):
    total = 0.0
    for i in range(5):
        for t in range(3):
            steered = softmax(batch["logits"][i, t] + batch["shift"][i, t])
            weight = batch["mask"][i] * batch["weights"][i, t]
            total -= weight * math.log(steered[batch["labels"][i, t]])
    found = losses.fidelity(*observed(batch))
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_stability_is_the_mean_divergence_outside(batch):
    total = 0.0
    for i in range(5):
        for t in range(3):
            p = softmax(batch["logits"][i, t])
            q = softmax(batch["logits"][i, t] + batch["shift"][i, t])
            kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            total += batch["mask"][i] * batch["weights"][i, t] * kl
    found = losses.stability(*observed(batch))
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_linearity_is_the_ridge_residual():
    rng = np.random.default_rng(1)
    y, sketch, gamma = rng.normal(size=(6, 20)), rng.normal(size=(20, 4)), 0.3
    total = 0.0
    for row in y:
        coefficients = np.linalg.solve(sketch.T @ sketch + gamma * np.eye(4), sketch.T @ row)
        total += sum((sketch @ coefficients - row) ** 2)
    found = losses.linearity(jnp.asarray(y), jnp.asarray(sketch), gamma)
    assert float(found) == pytest.approx(total / 6, rel=1e-4)


def test_sketch_is_the_design_times_a_gaussian_of_variance_one_over_q():
    subsets = membership(Design(30, 4), [str(i) for i in range(400)])
    sketch = np.asarray(joint.jl_sketch(subsets, 30, 20_000, jax.random.key(0)))
    m = np.asarray(subset_sum(subsets, jnp.eye(400), 30))
    # E[M R Rᵀ Mᵀ] = M Mᵀ.
    error = np.linalg.norm(sketch @ sketch.T - m @ m.T) / np.linalg.norm(m @ m.T)
    assert error < 0.1


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.4, 0.6, 5.0, 60.0])
def test_loss_drop_against_float64(size):
    rng = np.random.default_rng(2)
    o = (rng.normal(size=(50, 10)) * 3).astype(np.float32)
    s = (rng.normal(size=(50, 10)) * size).astype(np.float32)
    y = rng.integers(0, 10, 50)
    log_sum = lambda v: np.log(np.exp(v - v.max(1, keepdims=True)).sum(1)) + v.max(1)  # noqa: E731
    wide, shift = o.astype(np.float64), s.astype(np.float64)
    exact = shift[np.arange(50), y] - (log_sum(wide + shift) - log_sum(wide))
    found = loss_drop(jnp.asarray(s), jnp.asarray(o), jnp.asarray(y))
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-6 * size)
    grad = jax.grad(lambda v: loss_drop(v, jnp.asarray(o), jnp.asarray(y)).sum())(s)
    assert np.isfinite(np.asarray(grad)).all()


def test_basis_spans_the_principal_components(trained):
    seen = forward_all(trained.tapped, trained.params, trained.train)
    basis = ops.fit_basis(seen.activations, ops.BasisSettings(rank=5))
    x = np.asarray(standardise(basis, seen.activations))[:, 0]
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    reference = sklearn.decomposition.PCA(5).fit(x).components_.T
    ours = np.asarray(basis.weights["projection"])
    np.testing.assert_allclose(np.abs(np.diag(ours.T @ reference)), 1, atol=1e-3)
    b = ops.example_features(basis, seen.activations)
    np.testing.assert_allclose(b[:, 0, :5], x @ ours, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(b[..., 5], 1)
    drawn = ops.fit_basis(seen.activations, ops.BasisSettings(rank=5, kind="random"))
    random = np.asarray(drawn.weights["projection"])
    np.testing.assert_allclose(random.T @ random, np.eye(5), atol=1e-5)
    assert np.linalg.norm(ours.T @ random) < 2, "not the principal ones"
    with pytest.raises(ValueError, match=r"lack the taps \['input'\]"):
        standardise(basis, {k: v for k, v in seen.activations.items() if k != "input"})


def test_basis_keeps_no_more_directions_than_the_data_have():
    x = jax.random.normal(jax.random.key(0), (40, 1, 2)) @ jnp.ones((2, 6))
    basis = ops.fit_basis({"t": x}, ops.BasisSettings(rank=4))
    assert basis.weights["projection"].shape == (6, 1)
    with pytest.raises(ValueError, match="tap 't' is constant"):
        ops.fit_basis({"t": jnp.ones((4, 1, 2))}, ops.BasisSettings())


@pytest.fixture(scope="module")
def problem(trained):
    """A small training problem: `(design, subsets, site, basis, source)`."""
    design = Design(num_subsets=16, degree=3)
    seen = forward_all(trained.tapped, trained.params, trained.train)
    basis = ops.fit_basis(seen.activations, ops.BasisSettings(rank=6))
    subsets = membership(design, trained.train.ids)
    return design, subsets, ops.LogitSite(10), basis, observed_source(seen, {})


SETTINGS = ops.JointSettings(steps=12, learning_rate=1e-2, stability_batch=64)


def one_device():
    return Execution(
        jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "subset"))
    )


def test_operators_trained_together_are_those_trained_alone(problem):
    _, subsets, site, basis, source = problem
    together, _ = ops.train_jointly(*problem, SETTINGS, one_device())
    for k in (0, 7, 15):
        # Alone: subset 0 holds the members of subset k, subset 1 everyone else.
        outside = ~(subsets == k).any(axis=1, keepdims=True)
        alone, _ = ops.train_jointly(
            Design(2, 1), outside.astype(jnp.int32), site, basis, source, SETTINGS, one_device(),
        )  # fmt: skip
        np.testing.assert_allclose(together.a_KxRxO[k], alone.a_KxRxO[0], rtol=1e-3, atol=1e-5)


def test_training_sharded_or_chunked_changes_nothing(problem):
    settings = dataclasses.replace(SETTINGS, linearity=0.1, basis_learning_rate=1e-3)
    plain, log = ops.train_jointly(*problem, settings, one_device())
    assert set(log) == {"fidelity", "stability", "linearity"}
    sharded, _ = ops.train_jointly(*problem, settings, Execution(meshes.make_mesh(2, 2)))
    assert sharded.a_KxRxO.sharding.spec == jax.sharding.PartitionSpec("subset")
    assert len(sharded.a_KxRxO.addressable_shards) == 4
    small = dataclasses.replace(one_device(), memory=200_000)
    step = joint.program(problem[0], *problem[2:], settings, small)
    largest = members(problem[1], 16)[0].shape[1]
    assert joint.num_chunks(16, largest, step.args[1], 7, 64, small.memory) > 1
    chunked, _ = ops.train_jointly(*problem, settings, small)
    for other in (sharded, chunked):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, other
        )


def test_training_lowers_its_members_loss(problem):
    _, log = ops.train_jointly(*problem, dataclasses.replace(SETTINGS, steps=40))
    assert log["fidelity"][-1] < log["fidelity"][0]


def test_mlp_basis_starts_as_the_linear_one_and_learns(problem):
    design, subsets, site, linear, source = problem
    seen = source.data[0]
    basis = ops.fit_basis(seen.activations, ops.BasisSettings(rank=6, kind="mlp", hidden=8))
    x = standardise(linear, seen.activations)
    np.testing.assert_allclose(features(basis.weights, x), features(linear.weights, x), atol=1e-6)
    settings = dataclasses.replace(SETTINGS, basis_learning_rate=1e-2)
    trained_ops, _ = ops.train_jointly(design, subsets, site, basis, source, settings)
    assert float(jnp.abs(trained_ops.basis.weights["outer"]).max()) > 0


def test_residual_site_with_an_identity_suffix_is_the_logit_site(problem, trained):
    design, subsets, _, basis, source = problem
    seen = source.data[0]
    # The "rest of the network" after the logits is the identity.
    model = taps.from_function(
        lambda p, x: (trained.tapped(p, x)[0], {"logits": trained.tapped(p, x)[0]}),
        suffix=lambda p, x, replace: replace["logits"],
    )
    inputs = trained.train.inputs
    at_logits = dataclasses.replace(
        seen, activations={**seen.activations, "logits": seen.logits_NxTxC}
    )
    settings = IndexSettings(taps=("logits",), sites=("logits",))
    residual = resolve(model, trained.params, inputs[:1], settings).sites["logits"]
    context = residual.context(at_logits, inputs)
    source = observed_source(at_logits, context, trained.params)
    found, _ = ops.train_jointly(design, subsets, residual, basis, source, SETTINGS)
    expected, _ = ops.train_jointly(*problem, SETTINGS)
    np.testing.assert_allclose(found.a_KxRxO, expected.a_KxRxO, rtol=2e-2, atol=1e-4)


def test_bad_settings_are_refused(problem, trained):
    with pytest.raises(ValueError, match="num_subsets=15 can't be split over the 2 devices"):
        ops.train_jointly(Design(15, 3), *problem[1:], SETTINGS, Execution(meshes.make_mesh(2, 2)))
    with pytest.raises(ValueError, match="steps=0"):
        ops.JointSettings(steps=0)
    with pytest.raises(ValueError, match="kind='conv'"):
        ops.BasisSettings(kind="conv")
    settings, one = IndexSettings(taps=("input",), sites=("x",)), trained.train.inputs[:1]
    with pytest.raises(ValueError, match="unknown tap 'x'"):
        resolve(trained.tapped, trained.params, one, settings)
    blind = taps.from_function(lambda p, x: (x, {"input": x, "x": x}))
    with pytest.raises(ValueError, match=r"site 'x' needs .*give from_function one"):
        resolve(blind, None, one, settings)
    with pytest.raises(ValueError, match="does not use all 4 devices"):
        meshes.make_mesh(3, 2)
