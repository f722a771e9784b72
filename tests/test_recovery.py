"""The Lasso against scikit-learn, float64 optimality conditions, and itself without screening."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from sklearn.linear_model import ElasticNet, Lasso

from stride_jax.design import Design, membership
from stride_jax.recovery import LassoSettings, init, init_rows, lambda_max, solve
from stride_jax.recovery.certificate import certify
from stride_jax.recovery.lasso import finish, open_queries


def planted(num_train, num_subsets, degree, sparsity, queries, seed=0):
    """Membership, its dense M, true influences and noiseless measurements."""
    design = Design(num_subsets, degree)
    subsets = np.asarray(membership(design, [str(i) for i in range(num_train)]))
    rng = np.random.default_rng(seed)
    w = np.zeros((queries, num_train), np.float32)
    for row in w:
        support = rng.choice(num_train, sparsity, replace=False)
        row[support] = rng.uniform(0.5, 1.5, sparsity) * rng.choice([-1, 1], sparsity)
    m = np.zeros((num_subsets, num_train))
    np.add.at(m, (subsets, np.arange(num_train)[:, None]), 1)
    return design, subsets, m, w, w @ m.T.astype(np.float32)


def one_device():
    return jax.make_mesh((1,), ("query",), axis_types=(AxisType.Auto,))


def objective(m, y, w, penalty):
    """Primal objective in float64, everything centred."""
    r = y - m @ w
    return 0.5 * ((r - r.mean()) ** 2).sum() + penalty * np.abs(w).sum()


def test_planted_signals_are_found_and_agree_with_scikit_learn():
    """The issue's own setting: N = 4,500, K = 1000, d = 10, 30-sparse, 200 queries."""
    design, subsets, m, w, y = planted(4500, 1000, 10, sparsity=30, queries=200)
    state = init(design, subsets)
    found = solve(state, y, LassoSettings(lambda_fraction=0.02))
    top = np.argsort(-np.abs(found.scores_QxN), axis=1)[:, :30]
    right = [set(row) == set(np.flatnonzero(true)) for row, true in zip(top, w, strict=True)]
    assert np.mean(right) >= 0.99
    assert found.relative_gap_Q.max() <= 1e-4
    assert found.kkt_Q.max() < 1e-2
    found = solve(state, y[:3], LassoSettings(lambda_fraction=0.02, relative_gap=1e-6))
    for q in range(3):
        reference = Lasso(alpha=found.lambda_Q[q] / 1000, tol=1e-10, max_iter=100_000)
        reference.fit(m, y[q].astype(np.float64))
        difference = np.linalg.norm(found.scores_QxN[q] - reference.coef_)
        assert difference <= 1e-3 * np.linalg.norm(reference.coef_)


@pytest.fixture(scope="module")
def small():
    """A design that many random problems share: its programs compile once."""
    design, subsets, m, _, _ = planted(300, 60, 4, sparsity=5, queries=1)
    return init(design, subsets, mesh=one_device()), m


# 40 draws of 25 queries each: 1,000 problems.
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    sparsity=st.integers(0, 40),
    noise=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e5]),
)
def test_optimality_holds_in_float64_and_nothing_active_is_screened(
    small, seed, sparsity, noise, scale
):
    state, m = small
    rng = np.random.default_rng(seed)
    w = np.zeros((25, 300))
    for row in w:
        row[rng.choice(300, sparsity, replace=False)] = rng.normal(size=sparsity)
    y = scale * (w @ m.T + noise * rng.normal(size=(25, 60)) + rng.normal(size=(25, 1)))
    fraction = rng.uniform(0.02, 1.0, 25)
    tight = LassoSettings(relative_gap=1e-6, working_set=32, chunk=32)
    found = finish(state, open_queries(state, y, tight), fraction, tight)
    whole = dataclasses.replace(tight, working_set=300)
    unscreened = finish(state, open_queries(state, y, whole), fraction, whole)
    centred = m - m.mean(axis=0)
    for q in np.flatnonzero(found.lambda_Q > 0):
        yc, v, penalty = y[q] - y[q].mean(), found.scores_QxN[q].astype(float), found.lambda_Q[q]
        best = np.abs(centred.T @ yc).max()
        np.testing.assert_allclose(penalty, fraction[q] * best, rtol=1e-5)
        correlation = centred.T @ (yc - centred @ v)
        # A gap of g leaves the residual within sqrt(2 g) of the optimal one, and correlations
        # within sqrt(2 g d): every one of the 300, active or screened, must be as optimality says.
        gap = found.relative_gap_Q[q] * 0.5 * yc @ yc
        assert found.relative_gap_Q[q] <= 1e-6
        slack = 2 * np.sqrt(2 * gap * 4) + 1e-5 * penalty
        assert np.abs(correlation).max() <= penalty + slack
        active = v != 0
        assert np.abs(correlation - penalty * np.sign(v))[active].max(initial=0) <= slack
        other = unscreened.scores_QxN[q].astype(float)
        assert abs(objective(m, yc, v, penalty) - objective(m, yc, other, penalty)) <= (
            max(gap, unscreened.relative_gap_Q[q] * 0.5 * yc @ yc) + 1e-12
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    off=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
    signed=st.booleans(),
    intercept=st.booleans(),
)
def test_the_certificate_is_an_upper_bound_whatever_the_rounding(seed, off, signed, intercept):
    """For any w, any float32 dual point and a pass that rounds as badly as it may."""
    rng = np.random.default_rng(seed)
    n, k, d = 40, 25, 3
    rows = np.array([rng.choice(k, d, replace=False) for _ in range(n)])
    m = np.zeros((k, n))
    m[rows, np.arange(n)[:, None]] = 1
    y = rng.normal(size=k) * 10.0 ** rng.integers(-3, 4) + rng.normal()
    a = m - m.mean(axis=0) if intercept else m
    b = y - y.mean() if intercept else y
    penalty = rng.uniform(0.05, 0.9) * np.abs(a.T @ b).max()
    model = Lasso(
        alpha=penalty / k, fit_intercept=False, positive=signed, tol=1e-14, max_iter=10**6
    ).fit(a, b)
    best = 0.5 * ((b - a @ model.coef_) ** 2).sum() + penalty * np.abs(model.coef_).sum()
    w = model.coef_ * (1 + off * rng.normal(size=n))
    w = np.abs(w).astype(np.float32) if signed else w.astype(np.float32)
    r = (b - a @ w + 0.1 * off * rng.normal(size=k)).astype(np.float32)
    exact = m.T @ r.astype(np.float64)
    slack = (d - 1) * 2.0**-24 * (m.T @ np.abs(r.astype(np.float64)))
    reached = (exact - slack) if signed else np.maximum(np.abs(exact) - slack, 0)
    kept = w != 0
    proof = certify(
        rows[kept], w[kept], y, r, float(np.float32(reached.max())),
        np.full(kept.sum(), penalty), penalty, signed=signed, intercept=intercept,
    )  # fmt: skip
    ours = 0.5 * ((b - a @ w.astype(float)) ** 2).sum() + penalty * np.abs(w.astype(float)).sum()
    assert proof.relative_gap * 0.5 * b @ b >= ours - best - 1e-12 * (b @ b)
    if off == 0:
        assert proof.relative_gap < 1e-4, "and a tight one at the optimum"


@pytest.mark.parametrize(
    ("penalty", "intercept"),
    [("lasso", False), ("nonnegative", True), ("elastic_net", True), ("elastic_net", False)],
)
def test_every_penalty_agrees_with_scikit_learn(penalty, intercept):
    design, subsets, m, _, y = planted(600, 150, 5, sparsity=10, queries=3, seed=1)
    y = y + np.random.default_rng(2).normal(size=y.shape)
    gamma = 0.7 if penalty == "elastic_net" else 0.0
    ours = LassoSettings(
        lambda_fraction=0.1, relative_gap=1e-5, penalty=penalty, gamma=gamma, intercept=intercept,
        working_set=128,
    )  # fmt: skip
    found = solve(init(design, subsets, mesh=one_device()), y, ours)
    assert found.relative_gap_Q.max() <= 1e-5
    common = {"fit_intercept": intercept, "tol": 1e-12, "max_iter": 10**6}
    for q in range(3):
        alpha = found.lambda_Q[q] / 150
        reference = Lasso(alpha, positive=penalty == "nonnegative", **common)
        if penalty == "elastic_net":
            reference = ElasticNet(alpha * (1 + gamma), l1_ratio=1 / (1 + gamma), **common)
        reference.fit(m, y[q])
        np.testing.assert_allclose(found.scores_QxN[q], reference.coef_, atol=2e-3)


def test_penalty_weights_rescale_examples_and_debiasing_undoes_shrinkage():
    design, subsets, m, w, y = planted(300, 120, 4, sparsity=5, queries=2)
    weights = np.random.default_rng(0).uniform(0.5, 2, 300)
    tight = LassoSettings(relative_gap=1e-7, working_set=32)
    state = init(design, subsets, penalty_N=weights, mesh=one_device())
    found = solve(state, y, tight)
    for q in range(2):
        reference = Lasso(found.lambda_Q[q] / 120, tol=1e-12, max_iter=10**6)
        reference.fit(m / weights, y[q].astype(float))
        np.testing.assert_allclose(found.scores_QxN[q], reference.coef_ / weights, atol=1e-3)
    debiased = solve(state, y, dataclasses.replace(tight, debias=True))
    assert np.abs(found.scores_QxN - w).max() > 0.01
    np.testing.assert_allclose(debiased.scores_QxN, w, atol=1e-4)


@pytest.mark.parametrize("penalty", ["lasso", "elastic_net"])
def test_devices_change_nothing(penalty):
    """1, 2 and 8 devices, queries split or columns split."""
    design, subsets, _, _, y = planted(2000, 120, 4, sparsity=8, queries=11)
    gamma = 0.5 if penalty == "elastic_net" else 0.0
    tight = LassoSettings(relative_gap=1e-5, working_set=128, chunk=8, penalty=penalty, gamma=gamma)
    alone = solve(init(design, subsets, mesh=one_device()), y, tight)
    ways = [(2, True), (8, False), (8, True)] if penalty == "lasso" else [(8, True)]
    for count, sharded in ways:
        mesh = jax.make_mesh(
            (count,), ("part",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
        )
        state = init(design, subsets, mesh=mesh, shard_columns=sharded)
        shards = {s.data.shape[0] for s in state.table_PxD.addressable_shards}
        assert shards == {state.table_PxD.shape[0] // (count if sharded else 1)}
        found = solve(state, y, tight)
        np.testing.assert_array_equal(found.lambda_Q, alone.lambda_Q)
        np.testing.assert_allclose(found.scores_QxN, alone.scores_QxN, atol=2e-3)
        assert found.relative_gap_Q.max() <= 1e-5


def test_lambda_max_silences_a_query_and_not_below():
    design, subsets, _, _, y = planted(300, 80, 4, sparsity=5, queries=3)
    state = init(design, subsets)
    at_max = solve(state, y, LassoSettings(lambda_fraction=1.0))
    np.testing.assert_array_equal(at_max.lambda_Q, lambda_max(state, y))
    assert np.abs(at_max.scores_QxN).max() < 1e-6 * np.abs(y).max()
    below = solve(state, y, LassoSettings(lambda_fraction=0.95))
    assert (below.support_Q >= 1).all()


def test_queries_do_not_depend_on_their_company_nor_on_memory():
    design, subsets, _, _, y = planted(300, 80, 4, sparsity=5, queries=7)
    state = init(design, subsets)
    whole = solve(state, y, LassoSettings(chunk=64))
    parts = solve(state, y, LassoSettings(chunk=2))
    np.testing.assert_allclose(parts.scores_QxN, whole.scores_QxN, rtol=1e-3, atol=1e-5)
    shifted = solve(state, y + 5.0)
    np.testing.assert_allclose(shifted.scores_QxN, whole.scores_QxN, rtol=1e-2, atol=1e-3)
    small = solve(state, y, LassoSettings(memory_bytes=9500))
    np.testing.assert_allclose(small.scores_QxN, whole.scores_QxN, rtol=1e-3, atol=1e-5)


def test_any_binary_matrix_given_by_rows():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(50, 25, replace=False) for _ in range(40)])
    m = np.zeros((40, 50))
    m[np.arange(40)[:, None], rows] = 1
    y = m @ (rng.normal(size=50) * (rng.random(50) < 0.1)) + 0.1 * rng.normal(size=40)
    found = solve(init_rows(rows, 50), y[None], LassoSettings(relative_gap=1e-7))
    reference = Lasso(found.lambda_Q[0] / 40, tol=1e-12, max_iter=10**6).fit(m, y)
    np.testing.assert_allclose(found.scores_QxN[0], reference.coef_, atol=1e-3)


def test_a_query_without_signal_scores_zero():
    design, subsets, _, _, y = planted(300, 80, 4, sparsity=5, queries=2)
    y = np.where(np.arange(2)[:, None] == 1, np.float32(0.1), y)
    found = solve(init(design, subsets), y)
    assert found.support_Q[1] == 0
    assert found.lambda_Q[1] == 0
    assert found.support_Q[0] > 0


def test_bad_input_is_refused_before_any_pass(monkeypatch):
    design, subsets, _, _, y = planted(300, 80, 4, sparsity=5, queries=2)
    state = init(design, subsets)
    monkeypatch.setattr("stride_jax.recovery.lasso.play_round", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(ValueError, match=r"\(2, 79\) do not fit the design's K=80"):
        solve(state, y[:, :79])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="of 1 queries are not finite, first of row 1"):
            solve(state, np.where(np.arange(160).reshape(2, 80) == 100, bad, y))
    for fraction in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"lambda_fraction={fraction}"):
            LassoSettings(lambda_fraction=fraction)
    with pytest.raises(ValueError, match=r"memory_bytes=1000 is too small .* takes \d+ bytes"):
        solve(state, y, LassoSettings(memory_bytes=1000))
    with pytest.raises(ValueError, match="does not fit K=40"):
        init(Design(40, 4), subsets)
    with pytest.raises(ValueError, match="degree=5 exceeds num_subsets=4"):
        Design(4, 5)
    with pytest.raises(ValueError, match="300 positive finite numbers"):
        init(design, subsets, penalty_N=np.zeros(300))
    with pytest.raises(ValueError, match="the elastic net needs a positive gamma"):
        LassoSettings(penalty="elastic_net")
    with pytest.raises(ValueError, match="penalty='ridge': use one of lasso"):
        LassoSettings(penalty="ridge")
