"""Opponents that solve, whiten, unroll or count, against their papers' equations by brute force."""

import dataclasses
import itertools
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
from flax import linen as nn

from benchmarks.contestants import contestants
from benchmarks.methods import Stride
from stride_jax import objectives
from stride_jax.baselines import (
    ekfac,
    gauss_newton,
    knn_shapley,
    moments,
    representer,
    simple,
    source,
    text,
    trackstar,
)
from stride_jax.baselines.model import Model, flat_gradients
from stride_jax.data import Examples
from stride_jax.models import MLP, TrainSettings, pretrain


def cut(examples, count):
    return Examples(examples.inputs[:count], examples.labels[:count], examples.ids[:count])


RECIPE = TrainSettings(epochs=4, batch_size=8, learning_rate=0.1, seed=1)


@pytest.fixture(scope="module")
def scene(trained):
    """A tiny MLP with three checkpoints: `(model, 30 train, 7 query)`."""
    train = cut(trained.train, 30)
    checkpoints, rates = pretrain(MLP(10, (6,)), train.inputs, train.labels, RECIPE, 3)
    model = Model(MLP(10, (6,)), tuple(checkpoints), tuple(rates), 1.5, recipe=RECIPE)
    return model, train, cut(trained.query, 7)


def gradients(model, params, examples):
    pair = jnp.asarray(examples.inputs), jnp.asarray(examples.labels)
    return np.asarray(flat_gradients(model.layer_pass(params, *pair)), np.float64)


def relative(gram, damping):
    return damping * np.trace(gram) / len(gram) * np.eye(len(gram))


SIZES = {"dense0": (65, 6), "head": (7, 10)}


def in_layers(flat):
    """`{layer: [n, I, J]}` of flat rows."""
    out, start = {}, 0
    for name, (rows, columns) in SIZES.items():
        out[name] = flat[:, start : start + rows * columns].reshape(-1, rows, columns)
        start += rows * columns
    return out


def dense_gauss_newton(model, train):
    """The mean of `Jᵀ H J`, J by autodiff in the parameters as the layers' matrices hold them."""

    def logits(flat, x):
        along = {n: v[0] for n, v in in_layers(flat[None]).items()}
        params = {n: {"kernel": v[:-1], "bias": v[-1]} for n, v in along.items()}
        return model.module.apply({"params": params}, x[None])[0][0] / model.temperature

    weights = [
        np.vstack([model.params[n]["kernel"], model.params[n]["bias"][None]]).ravel() for n in SIZES
    ]
    flat, total = jnp.concatenate(weights), 0.0
    jacobian = jax.jit(jax.jacobian(logits))
    for x in train.inputs:
        j, o = np.asarray(jacobian(flat, x), np.float64), logits(flat, x)
        p = np.asarray(jax.nn.softmax(o), np.float64)
        total = total + j.T @ (np.diag(p) - np.outer(p, p)) @ j
    return total / len(train)


def test_gauss_newton_is_solved_as_a_dense_system_is(scene):
    model, train, query = scene
    settings = gauss_newton.GaussNewtonSettings(
        damping=0.3, steps=60, batch_size=16, queries_at_once=3
    )
    state = gauss_newton.fit(model, train, settings)
    ridge = ekfac.dampings(state, 0.3)
    ridges = np.concatenate([np.full(math.prod(SIZES[n]), ridge[n]) for n in SIZES])
    dense = dense_gauss_newton(model, train) + np.diag(ridges)
    own, g = (gradients(model, model.params, e) for e in (query, train))
    expected = own @ np.linalg.solve(dense, g.T)
    scale = np.abs(expected).max()
    found = gauss_newton.score(state, model, train, query, settings)
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
    few = dataclasses.replace(settings, steps=2, max_bytes=1)
    near = gauss_newton.score(state, model, train, query, few)
    kronecker = ekfac.score(state, model, train, query, ekfac.EkfacSettings(damping=0.3))
    assert np.abs(near - expected).mean() < 0.7 * np.abs(kronecker - expected).mean()
    drawn = dataclasses.replace(
        settings, solver="astra", steps=100, curvature_batch=30, momentum=0.9
    )
    mended = gauss_newton.score(state, model, train, query, drawn)
    np.testing.assert_allclose(mended, expected, atol=2e-3 * scale)
    with pytest.raises(ValueError, match="solver='lissa': use 'cg' or 'astra'"):
        gauss_newton.GaussNewtonSettings(solver="lissa")


def test_shampoo_s_eigenbasis_is_that_of_whole_gradients(scene):
    model, train, query = scene
    settings = ekfac.EkfacSettings(damping=0.1, eigenbasis="shampoo", samples=150, batch_size=30)
    state = ekfac.fit(model, train, settings)
    pair = jnp.asarray(train.inputs), jnp.asarray(train.labels)
    p = np.asarray(jax.nn.softmax(model.logits(model.params, pair[0])), np.float64)
    per_class = [
        in_layers(gradients(model, model.params, Examples(train.inputs, np.full(30, c), train.ids)))
        for c in range(10)
    ]
    for name in SIZES:
        left = sum(
            np.einsum("b,bio,bjo->ij", p[:, c], g[name], g[name]) for c, g in enumerate(per_class)
        )
        basis = np.asarray(state["bases"][name][0], np.float64)
        turned = basis.T @ left @ basis
        off = np.abs(turned - np.diag(np.diag(turned))).sum()
        assert off < 0.15 * np.trace(turned), "labels are drawn"
    scores = ekfac.score(state, model, train, query, settings)
    assert scores.shape == (7, 30)
    with pytest.raises(ValueError, match="eigenbasis='soap'"):
        ekfac.EkfacSettings(eigenbasis="soap")


@pytest.mark.parametrize("optimizer", [True, False])
def test_trackstar_is_its_equation(scene, optimizer):
    model, train, query = scene
    settings = trackstar.TrackstarSettings(
        rank=5, mix=0.3, damping=0.2, optimizer=optimizer, batch_size=16
    )
    state = trackstar.fit(model, train, settings)
    g, own = (in_layers(gradients(model, model.params, e)) for e in (train, query))
    both = [], []
    for name in SIZES:
        root = 1.0
        if optimizer:
            second = (g[name] ** 2).mean(axis=0)
            rows, columns = second.sum(axis=1), second.sum(axis=0)
            rows, columns = rows + 1e-3 * rows.mean(), columns + 1e-3 * columns.mean()
            root = np.sqrt(np.outer(rows, columns) / rows.sum())
        matrix = np.kron(*(np.asarray(side, np.float64) for side in state["sides"][name]))
        a, b = ((v[name] / root).reshape(len(v[name]), -1) @ matrix for v in (g, own))
        gram = 0.7 * a.T @ a / len(a) + 0.3 * b.T @ b / len(b)
        whiten = np.linalg.inv(scipy.linalg.sqrtm(gram + relative(gram, 0.2)).real)
        both[0].append(a @ whiten)
        both[1].append(b @ whiten)
    a, b = (np.concatenate(side, axis=1) for side in both)
    expected = 1 - scipy.spatial.distance.cdist(b, a, "cosine")
    found = trackstar.score(state, model, train, query, settings)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    with pytest.raises(ValueError, match=r"mix=1.5 is a share"):
        trackstar.TrackstarSettings(mix=1.5)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="head")(x), {}


def quadratic(recipe, scale=None):
    """Least squares at its minimum, where gradients stand still: what SOURCE takes for granted."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32) * np.array([0.3, 1.0, 3.0], np.float32)
    y = (x @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=40)).astype(np.float32)
    design = np.concatenate([x, np.ones((40, 1))], axis=1).astype(np.float64)
    theta = np.linalg.lstsq(design, y, rcond=None)[0]
    params = {"head": {"kernel": jnp.asarray(theta[:3, None], jnp.float32),
                       "bias": jnp.asarray(theta[3:], jnp.float32)}}  # fmt: skip
    train = Examples(x, y, np.arange(40).astype(str))
    query = Examples(x[:5] + 0.3, y[:5] - 1, np.arange(5).astype(str))
    model = Model(Linear(), (params,) * 2, (recipe.learning_rate,) * 2,
                  objective=objectives.squared_error(), recipe=recipe)  # fmt: skip
    errors = design @ theta - y
    asked = np.concatenate([query.inputs, np.ones((5, 1))], axis=1)
    own = asked * (asked @ theta - query.labels)[:, None]
    return model, train, query, design.T @ design / 40, design * errors[:, None], own


def unrolled(hessian, g, own, steps, size, preconditioner):
    """Queries' losses by an example's weight: `Σ_t own (1 − size P H)^t size P g`, step by step."""
    moved = np.zeros_like(g)
    for _ in range(steps):
        moved = moved - size * preconditioner * (moved @ hessian) + size * preconditioner * g
    return own @ moved.T


def test_source_is_unrolled_training_on_a_quadratic():
    recipe = TrainSettings(
        epochs=2, batch_size=2, learning_rate=1e-3, objective="squared_error", seed=0
    )
    model, train, query, hessian, g, own = quadratic(recipe)
    expected = unrolled(hessian, g, own, 40, 1e-2, 1.0)  # momentum makes steps ten times as long
    for segments in (1, 2):
        settings = source.SourceSettings(segments, samples=600, batch_size=40)
        found = source.score(source.fit(model, train, settings), model, train, query, settings)
        np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
    late = dataclasses.replace(settings, horizon=1000.0)
    found = source.score(source.fit(model, train, late), model, train, query, late)
    np.testing.assert_allclose(
        found, own @ np.linalg.solve(hessian, g.T), atol=0.06 * np.abs(found).max()
    )


def test_source_follows_adam_in_its_own_coordinates():
    recipe = TrainSettings(
        epochs=2, batch_size=2, learning_rate=1e-3, optimizer="adamw", objective="squared_error"
    )
    model, train, query, hessian, g, own = quadratic(recipe)
    second = (g**2).mean(axis=0) / 2  # of a batch of two
    rows = second + 1e-3 * second.mean()
    expected = unrolled(hessian, g, own, 40, 1e-3, 1 / np.sqrt(rows))
    settings = source.SourceSettings(2, samples=600, batch_size=40)
    found = source.score(source.fit(model, train, settings), model, train, query, settings)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_source_refuses_a_training_that_it_cannot_follow(scene):
    model, train, _ = scene
    with pytest.raises(ValueError, match=r"segments=4, but the model has 3 checkpoints"):
        source.fit(model, train, source.SourceSettings(4))
    with pytest.raises(ValueError, match="says nothing of its own"):
        source.fit(dataclasses.replace(model, recipe=None), train, source.SourceSettings(1))
    muon = dataclasses.replace(RECIPE, optimizer="muon")
    with pytest.raises(ValueError, match="optimizer='muon'"):
        source.fit(dataclasses.replace(model, recipe=muon), train, source.SourceSettings(1))


def test_factored_second_moments(scene):
    model, train, _ = scene
    g = in_layers(gradients(model, model.params, train))
    found = moments.second_moments(model, (model.params,), train, 8)
    for name, (rows, columns) in found.items():
        np.testing.assert_allclose(rows, (g[name] ** 2).mean(axis=0).sum(axis=1), rtol=1e-4)
        np.testing.assert_allclose(columns, (g[name] ** 2).mean(axis=0).sum(axis=0), rtol=1e-4)


def test_whitened_activations(scene):
    model, train, query = scene
    settings = simple.CosineSettings("hidden0", whitened=0.1)
    h = [
        np.asarray(model.module.apply({"params": model.params}, e.inputs)[1]["hidden0"], np.float64)
        for e in (query, train)
    ]
    own, rows = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in h)
    gram = rows.T @ rows / len(rows)
    root = np.linalg.inv(scipy.linalg.sqrtm(gram + relative(gram, 0.1)).real)
    expected = np.nan_to_num(1 - scipy.spatial.distance.cdist(own @ root, rows @ root, "cosine"))
    state = simple.fit_cosine(model, train, settings)
    found = simple.score_cosine(state, model, train, query, settings)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_representer_points_add_up_to_the_last_layer_s_change(scene):
    model, train, query = scene
    settings = representer.RepresenterSettings(batch_size=16)
    representer.fit(model, train, settings)
    found = representer.score(None, model, train, query, settings)
    h = [
        np.asarray(model.module.apply({"params": model.params}, e.inputs)[1]["hidden0"], np.float64)
        for e in (query, train)
    ]
    p = np.asarray(jax.nn.softmax(model.logits(model.params, jnp.asarray(train.inputs))))
    errors = np.eye(10)[train.labels] - p
    expected = errors[:, query.labels].T * (h[0] @ h[1].T + 1) / model.temperature**2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    numbers = dataclasses.replace(model, objective=objectives.squared_error())
    with pytest.raises(ValueError, match="explain a class"):
        representer.fit(numbers, train, settings)


def test_nearest_neighbours_shapley_values_are_the_mean_over_orders(scene):
    """All 720 orders in which six examples may join."""
    model, train, query = scene
    few = cut(train, 6)
    settings = knn_shapley.KnnShapleySettings("hidden0", neighbours=2)
    found = knn_shapley.score(knn_shapley.fit(model, few, settings), model, few, query, settings)
    own, rows = (
        np.asarray(model.module.apply({"params": model.params}, e.inputs)[1]["hidden0"])
        for e in (query, few)
    )
    for x, label, scores in zip(own, query.labels, found, strict=True):
        order = np.argsort(((rows - x) ** 2).sum(axis=1), kind="stable")

        def utility(members, order=order, label=label):
            nearest = [i for i in order if i in members][:2]
            return sum(few.labels[i] == label for i in nearest) / 2

        expected = np.zeros(6)
        for joining in itertools.permutations(range(6)):
            for place, i in enumerate(joining):
                before = set(joining[:place])
                expected[i] += (utility(before | {i}) - utility(before)) / 720
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"labels are float32\[30, 2\]"):
        knn_shapley.fit(
            model, Examples(train.inputs, np.zeros((30, 2), np.float32), train.ids), settings
        )


def test_dsir_is_a_log_ratio_of_frequencies():
    """Without collisions and with words alone the buckets are the words themselves."""
    rng = np.random.default_rng(0)
    rows, own = rng.integers(0, 9, (12, 20)), rng.integers(0, 9, (3, 5))
    train, query = (
        Examples(v.astype(np.int32), np.zeros_like(v), np.arange(len(v)).astype(str))
        for v in (rows, own)
    )
    settings = text.DsirSettings(ngrams=1, buckets=1 << 16, smoothing=0.5)
    found = text.score_dsir(text.fit_dsir(None, train, settings), None, train, query, settings)
    count = lambda v: np.stack([(v == word).sum(axis=1) for word in range(9)], axis=1)  # noqa: E731
    c = count(rows)
    p = (c.sum(axis=0) + 1) / (c.sum() + (1 << 16))
    smooth = count(own) + 0.5 * p * (1 << 16)
    total = 5 + 0.5 * (1 << 16)
    np.testing.assert_allclose(found, np.log(smooth / total / p) @ c.T, rtol=1e-4)


def by_rows(examples, rows):
    return Examples(examples.inputs[rows], examples.labels[rows], np.arange(len(rows)).astype(str))


def everyone(names, is_text):
    every = contestants(names, Stride(), is_text=is_text, checkpoints=3)
    return [m for m in every if "stride" not in m.name]


CLASSIFIERS = [m.name for m in everyone(["hidden0", "input"], False) if m.name != "random"]


def kept(settings, *names):
    return {name: getattr(settings, name) for name in names}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_opponent_keeps_the_conventions(scene, name):
    """`[query, train]`; batches and the order of examples are nothing to scores, copies are equal,
    and an example is a proponent of itself."""
    model, train, query = scene
    method = next(m for m in everyone(["hidden0", "input"], False) if m.name == name)
    group = method.grid[0]
    settings = group[len(group) // 2]
    copied = by_rows(train, [*range(30), 4])

    def scores(train, query, settings=settings):
        first = dataclasses.replace(
            group[0], **kept(settings, "batch_size")
        )  # settings share a fit
        return method.score(method.fit(model, train, first), model, train, query, settings)

    found = scores(copied, query)
    assert found.shape == (7, 31)
    assert found.dtype == np.float32
    scale = np.abs(found).max()
    np.testing.assert_allclose(found[:, 4], found[:, 30], atol=1e-4 * scale)
    turned, back = np.arange(31)[::-1], np.arange(7)[::-1]
    again = scores(by_rows(copied, turned), by_rows(query, back))[back][:, turned]
    small = dataclasses.replace(settings, batch_size=9)
    for other in (again, scores(copied, query, small)):
        if name in DRAWN:  # labels follow the order and the batches of examples
            assert np.corrcoef(other.ravel(), found.ravel())[0, 1] > 0.8
        else:
            np.testing.assert_allclose(other, found, atol=2e-3 * scale)
    itself = scores(copied, cut(train, 7))
    assert np.median([(row[i] >= row).mean() for i, row in enumerate(itself)]) > 0.8


DRAWN = ("ekfac", "ev-shampoo", "gauss-newton", "astra", "source")


class Words(nn.Module):
    """Token by token: a row of a table, then an output for each word."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(4, name="dense")(nn.Embed(9, 5, name="table")(x))
        return nn.Dense(9, name="head")(h), {"hidden": h}


OVERLAP = ("tf-idf", "bm25", "dsir", "random")  # they read every word, or none
READERS = [m.name for m in everyone(["hidden"], True) if m.name not in OVERLAP]


@pytest.fixture(scope="module")
def words():
    """A model of tokens with three checkpoints, and sequences of which parts do not count."""
    inputs, labels = np.random.default_rng(0).integers(0, 9, (2, 12, 6)).astype(np.int32)
    labels[::2, 4:] = -1
    recipe = dataclasses.replace(RECIPE, batch_size=4, optimizer="adamw", learning_rate=0.01)
    checkpoints, rates = pretrain(Words(), inputs, labels, recipe, 3)
    model = Model(Words(), tuple(checkpoints), tuple(rates), recipe=recipe)
    return model, Examples(inputs, labels, np.arange(12).astype(str))


@pytest.mark.parametrize("name", READERS)
def test_tokens_that_do_not_count_say_nothing(words, name):
    model, rows = words
    method = next(m for m in everyone(["hidden"], True) if m.name == name)
    settings = method.grid[0][len(method.grid[0]) // 2]
    inputs = rows.inputs.copy()
    inputs[::2, 4:] = (inputs[::2, 4:] + 1) % 9
    found = []
    for x in (rows.inputs, inputs):
        train = Examples(x, rows.labels, rows.ids)
        query = by_rows(train, [0, 1, 2])
        state = method.fit(model, train, settings)
        found.append(method.score(state, model, train, query, settings))
    np.testing.assert_allclose(*found, atol=1e-4 * np.abs(found[0]).max())
    assert np.abs(found[0]).max() > 0
