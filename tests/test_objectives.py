"""Losses other than cross-entropy: their pieces, and all that is read through them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stride_jax
from stride_jax import ReadSettings, objective_of, squared_error, with_objective
from stride_jax.objectives import (
    CROSS_ENTROPY,
    OBJECTIVES,
    SIGMOID,
    named_objective,
)
from stride_jax.operators import question_of
from stride_jax.settings import ExactSettings

N, D, C = 90, 5, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
W = RNG.normal(size=(D, C)).astype(np.float32) / 2
LINE = stride_jax.from_function(
    lambda w, x: (x @ w, {"input": x}), suffix=lambda w, x, t: t["input"] @ w
)
TARGETS = {
    "cross_entropy": RNG.integers(0, C, N),
    "squared_error": (X @ W + RNG.normal(size=(N, C))).astype(np.float32),
    "sigmoid": RNG.random((N, C)) < 0.4,
    "poisson": RNG.poisson(np.exp(X @ W)).astype(np.float32),
}
HOW = stride_jax.IndexSettings(
    design=stride_jax.Design(30, 4), closed_form=stride_jax.ClosedFormSettings(decay=0.2)
)


def close(found, wanted, rtol=1e-4):
    wanted = np.asarray(wanted)
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * size)


def softplus(o):
    return np.logaddexp(0, o)


LOSSES = {  # of one token in float64, written down again
    "cross_entropy": lambda o, y: np.logaddexp.reduce(o) - o[y],
    "squared_error": lambda o, y: ((o - y) ** 2).sum() / 2,
    "sigmoid": lambda o, y: (softplus(o) - y * o).sum(),
    "poisson": lambda o, y: (np.exp(o) - y * o).sum(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pieces_are_derivatives_of_the_loss(name):
    own, o = named_objective(name), jnp.asarray(X @ W * 2)
    y = jnp.asarray(np.asarray(TARGETS[name], np.int32 if name == "cross_entropy" else np.float32))
    wide = np.asarray(o, np.float64)
    close(own.loss(o, y), [LOSSES[name](a, b) for a, b in zip(wide, np.asarray(y), strict=True)])
    close(own.errors(o, y), -jax.grad(lambda v: own.loss(v, y).sum())(o))
    whole = jax.vmap(jax.hessian(lambda v, t: own.loss(v[None], t[None])[0]))(o, y)
    hessian, w = own.hessian(o, y).flat(), jnp.asarray(RNG.random(N), jnp.float32)
    close(hessian.total(w), jnp.einsum("n,ncd->cd", w, whole))
    close(jnp.stack([hessian.entry(0, c) for c in range(C)], 1), whole[:, 0])
    q = jnp.asarray(RNG.normal(size=(C, 2)), jnp.float32)
    close(hessian.along(q), jnp.einsum("co,ncd,do->no", q, whole, q))
    # The mean product of drawn errors over all signs is the Hessian.
    signs = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=C)))
    mixed = jnp.stack([hessian.mixed(jnp.broadcast_to(s[None], (N, C))) for s in signs])
    close(jnp.einsum("snc,snd->ncd", mixed, mixed) / len(signs), whole, rtol=1e-4)
    assert own.invariant == bool(np.abs(np.asarray(whole).sum(axis=2)).max() < 1e-5)


@pytest.mark.parametrize("size", [1e-6, 1e-2, 0.6, 8.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_shift_lowers_the_loss_by_its_drop_without_cancellation(name, size):
    own, o = named_objective(name), X @ W * 3
    y = np.asarray(TARGETS[name], np.int32 if name == "cross_entropy" else np.float32)
    s = np.clip(RNG.normal(size=(N, C)), -2, 2).astype(np.float32) * np.float32(size)
    wide, shift = o.astype(np.float64), s.astype(np.float64)
    exact = [LOSSES[name](a, t) - LOSSES[name](a + b, t)
             for a, b, t in zip(wide, shift, y, strict=True)]  # fmt: skip
    # float64 itself loses digits of the smallest shifts.
    np.testing.assert_allclose(
        own.drop(jnp.asarray(s), jnp.asarray(o), jnp.asarray(y)), exact,
        rtol=1e-4, atol=1e-6 * np.abs(exact).max() + 1e-14,
    )  # fmt: skip
    divergence = own.divergence(jnp.asarray(s), jnp.asarray(o), jnp.asarray(y))
    assert float(divergence.min()) >= -1e-5 * float(np.abs(exact).max())


def test_a_loss_of_ones_own_is_the_one_that_has_formulas():
    """JAX's derivatives and a quadrature, against closed forms; then the index made with them."""
    loss = objective_of(lambda o, y: (jax.nn.softplus(o) - y * o).sum(), "own sigmoid")
    o, y = jnp.asarray(X @ W), jnp.asarray(TARGETS["sigmoid"], jnp.float32)
    s = jnp.asarray(RNG.normal(size=(7, N, C)), jnp.float32)
    for size in (1e-6, 0.3, 1.0):
        close(loss.drop(s * size, o[None], y[None]), SIGMOID.drop(s * size, o[None], y[None]))
    close(loss.errors(o, y), SIGMOID.errors(o, y))
    how = dataclasses.replace(HOW, closed_form=stride_jax.ClosedFormSettings(doubt=0))
    scores = []
    for one in (loss, SIGMOID):
        model = with_objective(LINE, one)
        index = stride_jax.fit(model, W, X, TARGETS["sigmoid"], how)
        scores.append(
            stride_jax.attribute(model, W, index, X[:4], TARGETS["sigmoid"][:4]).scores_QxN
        )
    close(*scores)
    labels = objective_of(CROSS_ENTROPY.loss, "own classes", classes=True)
    close(labels.errors(o, jnp.asarray(TARGETS["cross_entropy"])),
          CROSS_ENTROPY.errors(o, jnp.asarray(TARGETS["cross_entropy"])))  # fmt: skip


def dense_scores(name, damping, doubt=0.005):
    """`g_xᵀ (F + gamma I)^{-1} g_i` in float64, from features with a one and JAX's Hessian."""
    own, y = named_objective(name), np.asarray(TARGETS[name])
    y = jnp.asarray(y, jnp.int32 if name == "cross_entropy" else jnp.float32)
    o = jnp.asarray(X @ W)
    read = own.doubted(o, doubt)
    hessian = np.asarray(
        jax.vmap(jax.hessian(lambda v, t: own.loss(v[None], t[None])[0]))(read, y), np.float64
    )
    b = np.concatenate([standard(X), np.ones((N, 1))], axis=1)
    f = np.einsum("nr,ns,ncd->rcsd", b, b, hessian).reshape(-1, b.shape[1] * C)
    f = f.reshape(b.shape[1] * C, b.shape[1] * C) / N
    gamma = damping * np.trace(f) / len(f) if damping else 0.2 * (b**2).sum(axis=1).mean() / N
    f += gamma * np.eye(len(f))
    g_train = np.einsum("nr,nc->nrc", b, np.asarray(own.errors(read, y))).reshape(N, -1)
    g_query = np.einsum("nr,nc->nrc", b, np.asarray(own.errors(o, y))).reshape(N, -1)
    return g_query[:4] @ np.linalg.solve(f, g_train.T) / N


def standard(x):
    """The basis' features up to a rotation, which scores do not see."""
    return (x - x.mean(axis=0)) / x.std(axis=0).mean()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_direct_scores_are_the_dense_influence_function(name):
    model, y = with_objective(LINE, name), TARGETS[name]
    index = stride_jax.fit(model, W, X, y, HOW)
    found = stride_jax.direct(model, W, index, (X, y), (X[:4], y[:4]))
    close(found.scores_QxN, dense_scores(name, index.settings.closed_form.damping), rtol=2e-3)
    assert found.settings["objective"] == name
    # All of them exactly, through the sketch's road.
    all_of_them = ReadSettings(exact=ExactSettings(budget=N))
    answer = stride_jax.attribute(
        model, W, index, X[:4], y[:4], all_of_them, train=stride_jax.Examples(X, y)
    )
    close(answer.scores_QxN, found.scores_QxN, rtol=2e-3)


def test_the_variance_of_the_noise_scales_scores_and_nothing_else():
    y = TARGETS["squared_error"]
    plain = with_objective(LINE, "squared_error")
    scores = []
    for model in (plain, with_objective(LINE, squared_error(0.25))):
        index = stride_jax.fit(model, W, X, y, HOW)
        scores.append(stride_jax.attribute(model, W, index, X[:4], y[:4]).scores_QxN)
    close(scores[1], 4 * scores[0])


def test_one_number_an_example_by_whatever_shape_it_comes():
    """A model that returns `[N]`, one that returns `[N, 1]`; targets of either shape."""
    w, y = W[:, 0], TARGETS["squared_error"][:, 0]
    flat = stride_jax.from_function(
        lambda w, x: (x @ w, {"input": x}), suffix=lambda w, x, t: t["input"] @ w
    )
    wide = stride_jax.from_function(lambda w, x: ((x @ w)[:, None], {"input": x}))
    how = dataclasses.replace(HOW, taps=("input",))
    found = []
    for model, targets in ((flat, y), (flat, y[:, None]), (wide, y)):
        model = with_objective(model, "squared_error")
        index = stride_jax.fit(model, w, X, targets, how)
        found.append(stride_jax.attribute(model, w, index, X[:4], targets[:4]).scores_QxN)
    close(found[1], found[0])
    close(found[2], found[0])
    assert np.abs(found[0]).max() > 0
    residual = with_objective(flat, "squared_error")
    index = stride_jax.fit(residual, w, X, y, dataclasses.replace(how, sites=("input",)))
    assert np.isfinite(stride_jax.attribute(residual, w, index, X[:4], y[:4]).scores_QxN).all()


@pytest.mark.parametrize("name", ["squared_error", "sigmoid", "poisson"])
def test_what_an_index_answers_besides_scores(name, tmp_path):
    """Weights, questions, contrasts, groups, steering, self-influence, joint training, a file."""
    model, y = with_objective(LINE, name), TARGETS[name].astype(np.float32)
    groups = ["even", "odd"] * (N // 2)
    index = stride_jax.fit(model, W, X, y, HOW, groups=groups)
    index.save(tmp_path / "index.npz")
    index = stride_jax.Index.load(tmp_path / "index.npz")
    ask = lambda **how: stride_jax.attribute(model, W, index, X[:4], y[:4], **how).scores_QxN  # noqa: E731
    close(ask(weights=np.full(4, 0.5)), ask() / 2)
    close(ask(against=y[4:8]), -stride_jax.attribute(
        model, W, index, X[:4], y[4:8], against=y[:4]).scores_QxN)  # fmt: skip
    first = question_of(lambda o, y: o[..., 0], "first output")
    assert np.abs(ask(question=first)).max() > 0
    steered = stride_jax.steer(model, W, index, X[:4], group="odd") - X[:4] @ W
    both = steered + stride_jax.steer(model, W, index, X[:4], group="even") - X[:4] @ W
    named = stride_jax.attribute_groups(model, W, index, X[:4], y[:4])
    # To first order a group's score is the inner product of the errors and the shift.
    errors = model.objective.errors(jnp.asarray(X[:4] @ W), jnp.asarray(y[:4]))
    close(named.scores_QxN[:, named.train_ids == "odd"][:, 0], (errors * steered).sum(axis=1), 0.02)
    assert np.abs(both).max() > 0
    own = stride_jax.self_influence(model, W, index, stride_jax.Examples(X, y))
    direct = stride_jax.direct(model, W, index, (X, y), (X, y)).scores_QxN
    assert own.labels_N is None
    # A training example's own doubted gradient twice, where a query's is not doubted.
    assert np.corrcoef(own.scores_N, np.diag(direct))[0, 1] > 0.99
    close(own.loss_N, model.objective.loss(jnp.asarray(X @ W), jnp.asarray(y)))
    joint = dataclasses.replace(
        HOW, fit="joint", joint=stride_jax.JointSettings(steps=150, learning_rate=0.02)
    )
    trained = stride_jax.fit(model, W, X, y, joint)
    solved = stride_jax.fit(
        model, W, X, y, dataclasses.replace(HOW, design=trained.settings.design)
    )
    a, b = (one.operators["logit"].a_KxRxO for one in (trained, solved))
    assert np.corrcoef(np.ravel(a), np.ravel(b))[0, 1] > 0.5, "trained operators point the same way"


def test_bad_targets_are_refused_by_what_they_are():
    y = TARGETS["squared_error"]

    def fit(labels, objective, model=LINE):
        return stride_jax.fit(with_objective(model, objective), W, X, labels, HOW)

    for labels, objective, words in [
        (y[:, 0], "cross_entropy", "no classes, .* loss is cross_entropy: .*squared_error"),
        (TARGETS["cross_entropy"], "squared_error", "int64 are classes, .* labels.astype.float"),
        (y[:, :2], "squared_error", "targets of 2 numbers do not fit the model's 3 outputs"),
        (y[:, None, :], "squared_error", r"shape \(1, 3\) .* shape \(90, 1, 3\)"),
        (y, "poisson", "counts of a Poisson loss hold -.*: they can't be negative"),
        (y, "sigmoid", "labels of a sigmoid cross-entropy run from -"),
        (y, "hinge", "objective='hinge': use one of cross_entropy, squared_error"),
        (y, objective_of(lambda o, t: -((o - t) ** 2).sum(), "wrong way"), "not convex .* -2"),
        (y, objective_of(lambda o, t: jnp.log(o - 1e3).sum(), "log"), "'log' or its Hessian"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            fit(labels, objective)
    with pytest.raises(ValueError, match="not finite in row 0"):
        fit(np.full((N, C), np.nan), "squared_error")
    with pytest.raises(ValueError, match="variance=0"):
        squared_error(0)
    index = fit(y, "squared_error")
    with pytest.raises(ValueError, match="loss is squared_error, this one's is cross_entropy"):
        stride_jax.attribute(LINE, W, index, X[:4], TARGETS["cross_entropy"][:4])
    other = with_objective(LINE, squared_error(0.25))
    with pytest.raises(ValueError, match=r"is squared_error, this one's is squared_error\(0.25\)"):
        stride_jax.attribute(other, W, index, X[:4], y[:4])
    with pytest.raises(ValueError, match="question='margin' is about classes"):
        stride_jax.attribute(
            with_objective(LINE, "squared_error"), W, index, X[:4], y[:4], question="margin"
        )


def test_check_reads_targets_that_are_numbers():
    y = TARGETS["squared_error"]
    for targets, level in ((y, "ok"), (9 - y, "warning")):
        report = stride_jax.check(
            with_objective(LINE, "squared_error"), W, stride_jax.Examples(X, targets), HOW
        )
        assert report["loss"].level == report.level == level, str(report)
    sure = stride_jax.from_function(lambda w, x: (jax.nn.sigmoid(x @ w), {"input": x}))
    made = stride_jax.check(with_objective(sure, "sigmoid"), W, stride_jax.Examples(X, y > 0), HOW)
    assert made["logits"].level == "warning"
