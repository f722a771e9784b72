"""Baselines against brute force: explicit gradients, explicit matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import sklearn.datasets
from flax import linen as nn

from stride_jax.baselines import datamodels, ekfac, gradients, less, logra, simple, text, trak
from stride_jax.baselines.model import Model, flat_gradients
from stride_jax.baselines.projection import num_parameters, projection_matrix
from stride_jax.data import Examples
from stride_jax.evaluation.bank import BankSettings, draw_subsets
from stride_jax.evaluation.statistics import spearman_rows
from stride_jax.models import MLP, ResNet9, TrainSettings, initial_params, pretrain
from stride_jax.objectives import cross_entropy, margin


def cut(examples, count):
    return Examples(examples.inputs[:count], examples.labels[:count], examples.ids[:count])


@pytest.fixture(scope="module")
def scene(trained):
    """A tiny MLP with three checkpoints: `(model, 40 train, 12 query)`."""
    module, train = MLP(10, (6,)), cut(trained.train, 40)
    recipe = TrainSettings(epochs=6, batch_size=8, learning_rate=0.1, seed=1)
    checkpoints, rates = pretrain(module, train.inputs, train.labels, recipe, 3)
    model = Model(module, tuple(checkpoints), tuple(rates), temperature=1.5)
    return model, train, cut(trained.query, 12)


def brute_gradients(model, params, examples, objective):
    """`[B, P]` from one autodiff pass per example, layer by layer as [kernel; bias]."""

    def one(params, x, y):
        logits = model.module.apply({"params": params}, x[None])[0] / model.temperature
        return objective(logits, y[None])[0]

    each = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))
    grads = each(params, jnp.asarray(examples.inputs), jnp.asarray(examples.labels))
    layers = [
        np.concatenate([grads[n]["kernel"], grads[n]["bias"][:, None]], axis=1)
        for n in [*(f"dense{i}" for i in range(len(grads) - 1)), "head"]
    ]
    flat = [layer.reshape(len(layer), -1) for layer in layers]
    return np.concatenate(flat, axis=1).astype(np.float64)


def test_layer_gradients_of_dense_layers_are_autodiffs(scene):
    model, _, query = scene
    for objective in (cross_entropy, trak.minus_margin):
        layers = model.layer_pass(
            model.params, jnp.asarray(query.inputs), jnp.asarray(query.labels), objective
        )
        brute = brute_gradients(model, model.params, query, objective)
        np.testing.assert_allclose(flat_gradients(layers), brute, rtol=1e-3, atol=1e-5)
    logits = np.random.default_rng(0).normal(size=(5, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = p[np.arange(5), [0, 1, 2, 3, 0]]
    found = margin(jnp.asarray(logits), jnp.array([0, 1, 2, 3, 0]))
    np.testing.assert_allclose(found, np.log(own / (1 - own)), rtol=1e-5)


class Strided(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), strides=(2, 2), name="conv")(x))
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1)), {}


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(Strided(), id="conv"),
        pytest.param(ResNet9(10, 1), id="resnet", marks=pytest.mark.slow),
    ],
)
def test_gradient_dot_of_convolutions_is_autodiffs(module, trained):
    train, query = cut(trained.train, 6), cut(trained.query, 3)
    params = initial_params(module, jax.random.key(0), jnp.asarray(train.inputs))
    model = Model(module, (params,))

    @jax.jit
    def brute(params, x, y):
        grads = jax.grad(lambda p: cross_entropy(module.apply({"params": p}, x)[0], y)[0])(params)
        kept = {n: g for n, g in grads.items() if not n.endswith("norm")}
        return jnp.concatenate([v.reshape(-1) for v in jax.tree.leaves(kept)])

    a, b = (
        np.stack([brute(params, x[None], y[None]) for x, y in zip(e.inputs, e.labels, strict=True)])
        for e in (query, train)
    )
    settings = gradients.GradientSettings(batch_size=4)
    found = gradients.score(None, model, train, query, settings)
    np.testing.assert_allclose(found, a @ b.T, rtol=2e-3, atol=1e-4 * np.abs(a @ b.T).max())
    cosine = 1 - scipy.spatial.distance.cdist(a, b, "cosine")
    settings = dataclasses.replace(settings, cosine=True)
    np.testing.assert_allclose(
        gradients.score(None, model, train, query, settings), cosine, atol=2e-3
    )


def test_tracin_sums_over_checkpoints(scene):
    model, train, query = scene
    expected = sum(
        rate
        * brute_gradients(model, params, query, cross_entropy)
        @ brute_gradients(model, params, train, cross_entropy).T
        for params, rate in zip(model.checkpoints, model.learning_rates, strict=True)
    )
    settings = gradients.GradientSettings(all_checkpoints=True, batch_size=9)
    found = gradients.score(None, model, train, query, settings)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def relative(gram, damping):
    return np.linalg.inv(gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram)))


def test_trak_is_its_formula(scene):
    model, train, query = scene
    settings = trak.TrakSettings(dim=16, damping=0.1, num_checkpoints=2, batch_size=16)
    matrix = np.asarray(projection_matrix(num_parameters(model, train.inputs), 16, 0), np.float64)
    np.testing.assert_allclose(np.abs(matrix), 0.25, rtol=1e-6)
    kernels, doubt = [], []
    for params in model.checkpoints[-2:]:
        phi, own = (
            brute_gradients(model, params, e, trak.minus_margin) @ matrix for e in (train, query)
        )
        kernels.append(own @ relative(phi.T @ phi, 0.1) @ phi.T)
        logits = model.module.apply({"params": params}, train.inputs)[0] / model.temperature
        p = np.asarray(jax.nn.softmax(logits))
        doubt.append(1 - p[np.arange(40), train.labels])
    expected = np.mean(kernels, axis=0) * np.mean(doubt, axis=0)
    found = trak.score(trak.fit(model, train, settings), model, train, query, settings)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
    with pytest.raises(ValueError, match="num_checkpoints=4, but the model has 3"):
        trak.fit(model, train, trak.TrakSettings(num_checkpoints=4))


def test_less_is_its_formula(scene):
    model, train, query = scene
    settings = less.LessSettings(dim=32, beta1=0.5, epsilon=0.1, batch_size=16)
    matrix = np.asarray(projection_matrix(num_parameters(model, train.inputs), 32, 0), np.float64)
    expected = 0.0
    for params, rate in zip(model.checkpoints, model.learning_rates, strict=True):
        g, own = (brute_gradients(model, params, e, cross_entropy) for e in (train, query))
        root = np.sqrt((g**2).mean(axis=0))
        update = (0.5 * g.mean(axis=0) + 0.5 * g) / (root + 0.1 * root.mean())
        cosine = 1 - scipy.spatial.distance.cdist(own @ matrix, update @ matrix, "cosine")
        expected = expected + rate * cosine
    found = less.score(less.fit(model, train, settings), model, train, query, settings)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_logra_with_all_directions_is_the_block_diagonal_gram_inverse(scene):
    model, train, query = scene
    settings = logra.LograSettings(rank=1000, damping=0.3, batch_size=16)
    g, own = (brute_gradients(model, model.params, e, cross_entropy) for e in (train, query))
    sizes = [65 * 6, 7 * 10]
    expected, start = 0.0, 0
    for size in sizes:
        a, b = g[:, start : start + size], own[:, start : start + size]
        expected = expected + b @ relative(a.T @ a, 0.3) @ a.T
        start += size
    found = logra.score(logra.fit(model, train, settings), model, train, query, settings)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-3 * np.abs(expected).max())
    narrow = dataclasses.replace(settings, rank=5, blocks=False, init="random")
    state = logra.fit(model, train, narrow)
    assert {k: v.shape for k, v in state["features"].items()} == {"all": (40, 50)}
    with pytest.raises(ValueError, match="init='svd'"):
        logra.LograSettings(init="svd")


def test_ekfac_is_the_fisher_s_diagonal_in_its_eigenbasis(scene):
    """Against the Fisher made of explicit gradients over all classes, weighted by their odds."""
    model, train, query = scene
    settings = ekfac.EkfacSettings(damping=0.1, samples=400, batch_size=40)
    state = ekfac.fit(model, train, settings)
    logits = np.asarray(model.logits(model.params, jnp.asarray(train.inputs)))
    p = np.asarray(jax.nn.softmax(logits))
    per_class = [
        brute_gradients(
            model, model.params, Examples(train.inputs, np.full(40, c), train.ids), cross_entropy
        )
        for c in range(10)
    ]
    own, g = (brute_gradients(model, model.params, e, cross_entropy) for e in (query, train))
    expected, exact, start = 0.0, 0.0, 0
    for name, (rows, columns) in {"dense0": (65, 6), "head": (7, 10)}.items():
        part = slice(start, start + rows * columns)
        start += rows * columns
        weighted = [np.sqrt(p[:, c : c + 1]) * per_class[c][:, part] for c in range(10)]
        fisher = sum(w.T @ w for w in weighted) / 40
        left, right = (np.asarray(b, np.float64) for b in state["bases"][name])
        basis = np.kron(left, right)
        diagonal = np.diag(basis.T @ fisher @ basis)
        found = np.asarray(state["eigenvalues"][name]).ravel()
        assert np.abs(found - diagonal).sum() < 0.05 * diagonal.sum(), "labels are drawn"
        damped = basis @ np.diag(1 / (found + 0.1 * found.mean())) @ basis.T
        expected = expected + own[:, part] @ damped @ g[:, part].T
        exact = exact + own[:, part] @ relative(fisher, 0.1) @ g[:, part].T
    scores = ekfac.score(state, model, train, query, settings)
    np.testing.assert_allclose(scores, expected, rtol=1e-2, atol=2e-3 * np.abs(expected).max())
    one_by_one = dataclasses.replace(settings, max_bytes=1)
    again = ekfac.score(state, model, train, query, one_by_one)
    np.testing.assert_allclose(again, scores, rtol=1e-5, atol=1e-6 * np.abs(scores).max())
    near, far = spearman_rows(scores, exact).mean(), spearman_rows(own @ g.T, exact).mean()
    assert near > 0.85, "EK-FAC approximates the exact block inverse"
    assert near > far + 0.05, "and better than no curvature at all"


def test_simple_baselines(scene):
    model, train, query = scene
    settings = simple.CosineSettings("hidden0", batch_size=7)
    found = simple.score_cosine(
        simple.fit_cosine(model, train, settings), model, train, query, settings
    )
    h = [
        np.asarray(model.module.apply({"params": model.params}, e.inputs)[1]["hidden0"])
        for e in (query, train)
    ]
    # A digit that wakes no unit is similar to none.
    expected = np.nan_to_num(1 - scipy.spatial.distance.cdist(*h, "cosine"))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    chance = simple.score_random(None, model, train, query, simple.RandomSettings())
    assert chance.shape == (12, 40)
    assert abs(chance.mean()) < 0.2


class Rows(nn.Module):
    """Token ids, whose features are rows of a table."""

    @nn.compact
    def __call__(self, x):
        h = nn.Embed(9, 5, name="table")(x)
        return nn.Dense(9, name="head")(h), {"table": h}


def test_features_of_sequences_count_by_label_or_by_place():
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, 9, (2, 6, 7))
    labels[:, :2] = labels[3:, 5:] = -1  # a prompt, and padding behind some
    rows = Examples(inputs, labels, np.arange(6).astype(str))
    module = Rows()
    model = Model(module, (initial_params(module, jax.random.key(0), inputs),))
    table = np.asarray(model.params["table"]["embedding"])
    for settings in (simple.CosineSettings(batch_size=4), simple.CosineSettings(rising=True)):
        expected = []
        for x, y in zip(inputs, labels, strict=True):
            last = np.flatnonzero(y >= 0).max()
            own = range(1, last + 2) if settings.rising else (y >= 0)[: last + 1]
            expected.append(np.average(table[x[: last + 1]], axis=0, weights=own))
        found = simple.score_cosine(
            simple.fit_cosine(model, rows, settings), model, rows, rows, settings
        )
        expected = 1 - scipy.spatial.distance.cdist(expected, expected, "cosine")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_datamodels_find_an_additive_world():
    rng = np.random.default_rng(0)
    w = np.zeros((3, 60), np.float32)
    w[:, :5] = rng.uniform(0.5, 1.5, (3, 5))
    rows = draw_subsets(60, BankSettings(num_subsets=80))
    y = np.stack([w[:, row].sum(axis=1) for row in rows], axis=1)
    found = datamodels.score(rows, y, 60, datamodels.DatamodelSettings(0.05))
    np.testing.assert_allclose(found, w, atol=0.15)


def padded(examples, count):
    """The same sequences with padding behind them."""
    behind = lambda v, own: np.pad(v, ((0, 0), (0, count)), constant_values=own)  # noqa: E731
    return Examples(behind(examples.inputs, 0), behind(examples.labels, -1), examples.ids)


def test_text_overlap_finds_the_source_of_a_passage(scene):
    """Real texts: scikit-learn's descriptions of its datasets, in passages of 32 words."""
    loaders = (sklearn.datasets.load_iris, sklearn.datasets.load_wine, sklearn.datasets.load_digits)
    words = [word for load in loaders for word in load().DESCR.split()]
    ids = np.unique(words, return_inverse=True)[1].astype(np.int32)
    passages = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    labels = np.zeros_like(passages)
    train = Examples(passages, labels, np.arange(len(passages)))
    query = Examples(passages[:, 8:24], labels[:, 8:24], np.arange(len(passages)))
    for fit, score, settings in (
        (text.fit_tfidf, text.score_tfidf, text.TfidfSettings()),
        (text.fit_bm25, text.score_bm25, text.Bm25Settings()),
        (text.fit_dsir, text.score_dsir, text.DsirSettings()),
    ):
        found = score(fit(None, train, settings), None, train, query, settings)
        assert found.shape == (len(passages),) * 2
        assert (found.argmax(axis=1) == np.arange(len(passages))).mean() > 0.9
        longer = [padded(one, 16) for one in (train, query)]
        np.testing.assert_array_equal(
            score(fit(None, longer[0], settings), None, *longer, settings), found
        )
        with pytest.raises(ValueError, match=r"reads token ids \[N, T\] .* inputs are float32"):
            fit(None, scene[1], settings)


def test_a_model_needs_a_rate_for_every_checkpoint(scene):
    with pytest.raises(ValueError, match="2 checkpoints and 1 learning rates"):
        Model(scene[0].module, scene[0].checkpoints[:2], (0.1,))
