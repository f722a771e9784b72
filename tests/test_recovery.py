"""The Lasso against scikit-learn, float64 optimality conditions, and itself without screening."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from sklearn.linear_model import ElasticNet, Lasso

from stride_jax.design import Design, membership
from stride_jax.recovery import LassoSettings, init, init_rows, lambda_max, lasso, program, solve
from stride_jax.recovery import columns as passes
from stride_jax.recovery.certificate import ColumnPass, Support, Terms, certify
from stride_jax.recovery.lasso import finish, open_queries
from stride_jax.runtime.execution import Execution


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


def on(count, **more):
    mesh = jax.make_mesh(
        (count,), ("part",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    return Execution(mesh=mesh, **more)


def objective(m, y, w, penalty):
    """Primal objective in float64, everything centred."""
    r = y - m @ w
    return 0.5 * ((r - r.mean()) ** 2).sum() + penalty * np.abs(w).sum()


def test_planted_signals_are_found_and_agree_with_scikit_learn():
    """The issue's own setting: N = 4,500, K = 1000, d = 10, 30-sparse, 200 queries."""
    design, subsets, m, w, y = planted(4500, 1000, 10, sparsity=30, queries=200)
    state = init(design, subsets)
    found = solve(state, y, LassoSettings(relative_gap=1e-4))
    top = np.argsort(-np.abs(found.scores_QxN), axis=1)[:, :30]
    right = [set(row) == set(np.flatnonzero(true)) for row, true in zip(top, w, strict=True)]
    assert np.mean(right) >= 0.99
    assert found.relative_gap_Q.max() <= 1e-4
    assert found.kkt_Q.max() < 1e-2
    found = solve(state, y[:3], LassoSettings(relative_gap=1e-6))
    for q in range(3):
        reference = Lasso(alpha=found.lambda_Q[q] / 1000, tol=1e-10, max_iter=100_000)
        reference.fit(m, y[q].astype(np.float64))
        difference = np.linalg.norm(found.scores_QxN[q] - reference.coef_)
        assert difference <= 1e-3 * np.linalg.norm(reference.coef_)


@pytest.fixture(scope="module")
def small():
    """A design that many random problems share: its programs compile once."""
    design, subsets, m, _, _ = planted(300, 60, 4, sparsity=5, queries=1)
    return init(design, subsets, execution=on(1)), m


# 16 draws of 25 queries each: 400 problems.
@settings(max_examples=16, deadline=None, derandomize=True)
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
    support = Support(rows[w != 0], w[w != 0], np.full((w != 0).sum(), penalty))
    passed = ColumnPass(r, float(np.float32(reached.max())))
    proof = certify(support, y, passed, Terms(penalty, intercept=intercept))
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
    found = solve(init(design, subsets, execution=on(1)), y, ours)
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
    tight = LassoSettings(lambda_fraction=0.05, relative_gap=1e-7, working_set=32)
    state = init(design, subsets, penalty_N=weights, execution=on(1))
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
    """1, 2 and 4 devices, queries split or columns split."""
    design, subsets, _, _, y = planted(2000, 120, 4, sparsity=8, queries=11)
    gamma = 0.5 if penalty == "elastic_net" else 0.0
    tight = LassoSettings(
        lambda_fraction=0.05, relative_gap=1e-5, working_set=128, chunk=8, penalty=penalty,
        gamma=gamma,
    )  # fmt: skip
    alone = solve(init(design, subsets, execution=on(1)), y, tight)
    ways = [(2, True), (4, False), (4, True)] if penalty == "lasso" else [(4, True)]
    for count, sharded in ways:
        state = init(design, subsets, execution=on(count), shard_columns=sharded)
        shards = {s.data.shape[0] for s in state.table_Pxd.addressable_shards}
        assert shards == {state.table_Pxd.shape[0] // (count if sharded else 1)}
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
    tight = LassoSettings(lambda_fraction=0.05, relative_gap=1e-4)
    whole = solve(state, y, tight)
    parts = solve(state, y, dataclasses.replace(tight, chunk=2))
    np.testing.assert_allclose(parts.scores_QxN, whole.scores_QxN, rtol=1e-3, atol=1e-5)
    shifted = solve(state, y + 5.0, tight)
    np.testing.assert_allclose(shifted.scores_QxN, whole.scores_QxN, rtol=1e-2, atol=1e-3)
    small = solve(init(design, subsets, execution=Execution(memory=9500)), y, tight)
    np.testing.assert_allclose(small.scores_QxN, whole.scores_QxN, rtol=1e-3, atol=1e-5)


def test_any_binary_matrix_given_by_rows():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(50, 25, replace=False) for _ in range(40)])
    m = np.zeros((40, 50))
    m[np.arange(40)[:, None], rows] = 1
    y = m @ (rng.normal(size=50) * (rng.random(50) < 0.1)) + 0.1 * rng.normal(size=40)
    found = solve(init_rows(rows, 50), y[None], LassoSettings(0.05, relative_gap=1e-7))
    reference = Lasso(found.lambda_Q[0] / 40, tol=1e-12, max_iter=10**6).fit(m, y)
    np.testing.assert_allclose(found.scores_QxN[0], reference.coef_, atol=1e-3)


@pytest.mark.parametrize("queries", [1, 2])
def test_a_query_without_signal_scores_zero(queries):
    """Measurements that are all equal."""
    design, subsets, _, _, y = planted(300, 80, 4, sparsity=5, queries=queries)
    y[-1] = np.float32(0.1)
    found = solve(init(design, subsets), y)
    assert found.support_Q[-1] == 0
    assert found.lambda_Q[-1] == 0
    assert (found.support_Q[:-1] > 0).all()


def test_columns_that_are_all_alike_explain_nothing_but_the_mean():
    """d = K: with an intercept every column is zero, and rounding is no influence."""
    k = 60
    subsets = np.tile(np.arange(k), (300, 1))
    y = np.random.default_rng(0).normal(size=(3, k))
    state = init(Design(k, k), subsets, penalty_N=np.linspace(0.5, 1.5, 300))
    found = solve(state, y)
    assert not found.lambda_Q.any()
    assert not found.support_Q.any()
    without = solve(state, y + 1, LassoSettings(intercept=False, relative_gap=1e-4))
    np.testing.assert_allclose(without.lambda_Q, 0.02 * (y + 1).sum(axis=1) / 0.5, rtol=1e-5)
    # The cheapest column takes all.
    np.testing.assert_allclose(
        without.scores_QxN.sum(axis=1), 0.98 * (y + 1).mean(axis=1), rtol=0.02
    )


@pytest.mark.parametrize("n", [1, 7])
def test_fewer_examples_than_a_working_set_holds(n):
    rng = np.random.default_rng(0)
    subsets = np.array([rng.choice(30, 4, replace=False) for _ in range(n)])
    m = np.zeros((30, n))
    m[subsets, np.arange(n)[:, None]] = 1
    y = m @ rng.normal(size=n) + 0.1 * rng.normal(size=30)
    for size in (1, 4, 256):
        ours = LassoSettings(0.1, relative_gap=1e-6, working_set=size)
        found = solve(init(Design(30, 4), subsets), y[None], ours)
        reference = Lasso(found.lambda_Q[0] / 30, tol=1e-12, max_iter=10**6).fit(m, y)
        np.testing.assert_allclose(found.scores_QxN[0], reference.coef_, atol=1e-3)


@pytest.mark.parametrize(("count", "sharded", "weighted"), [(1, False, True), (4, True, False)])
def test_a_plan_is_of_the_program_that_runs(monkeypatch, count, sharded, weighted):
    """Shapes, dtypes, shardings and static arguments, and so the compiled program, are the same."""
    design, subsets, _, _, y = planted(700, 80, 4, sparsity=5, queries=11)
    given_to = []
    run = lasso.run_round
    monkeypatch.setattr(lasso, "run_round", lambda *a, **k: given_to.append((a, k)) or run(*a, **k))
    settings = LassoSettings(penalty="elastic_net", gamma=0.1, working_set=100)
    execution = on(count, memory=10**6)
    weights = np.ones(700) if weighted else None
    state = init(design, subsets, penalty_N=weights, execution=execution, shard_columns=sharded)
    found = solve(state, y, settings)
    asked = program(
        700, design, 11, settings, weighted=weighted, execution=execution, shard_columns=sharded
    )
    args, statics = given_to[0]
    assert asked.statics == statics
    assert jax.tree.structure(asked.args) == jax.tree.structure(args)
    for abstract, real in zip(jax.tree.leaves(asked.args), jax.tree.leaves(args), strict=True):
        assert (abstract.shape, abstract.dtype) == (real.shape, real.dtype)
        assert abstract.sharding == real.sharding
    cached = run._cache_size()
    compiled = asked.step.lower(*asked.args, **asked.statics).compile()
    np.testing.assert_array_equal(compiled(*args).largest_Q, run(*args, **statics).largest_Q)
    assert run._cache_size() == cached
    assert asked.batch * (len(given_to) - 1) >= found.passes_Q.sum() - len(y)
    assert asked.calls % -(-11 // asked.batch) == 0


_X64 = """
import sys
import jax, numpy as np
from stride_jax.design import Design
from stride_jax.recovery import LassoSettings, SelectionSettings, init, recover, solve
assert jax.config.jax_enable_x64 == (sys.argv[2] == "1")
rng = np.random.default_rng(0)
design, subsets = Design(40, 4), np.array([rng.choice(40, 4, replace=False) for _ in range(150)])
y = rng.normal(size=(3, 40))
weighted = init(design, subsets, penalty_N=rng.uniform(.5, 2, 150))
net = LassoSettings(.1, 1e-5, penalty="elastic_net", gamma=.5, working_set=32)
sharded = init(design, subsets, shard_columns=True)
proponents = LassoSettings(.1, 1e-5, penalty="nonnegative", working_set=32)
out = [solve(weighted, y, net), solve(sharded, y, proponents)]
chosen = SelectionSettings("best", fractions=(.3, .1), splits=1)
out.append(recover(init(design, subsets), y, LassoSettings(working_set=32), chosen)[0])
np.save(sys.argv[1], [found.scores_QxN for found in out])
"""


@pytest.mark.slow
def test_x64_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    for enabled in "01":
        monkeypatch.setenv("JAX_ENABLE_X64", enabled)
        done = subprocess.run(
            [sys.executable, "-W", "error::FutureWarning", "-c", _X64, tmp_path / enabled, enabled],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with_x64 = np.load(tmp_path / "1.npy")
    assert (np.abs(with_x64).max(axis=(1, 2)) > 0.05).all()
    np.testing.assert_array_equal(with_x64, np.load(tmp_path / "0.npy"))


def test_bad_input_is_refused_before_any_pass(monkeypatch):
    design, subsets, _, _, y = planted(300, 80, 4, sparsity=5, queries=2)
    state = init(design, subsets)
    monkeypatch.setattr(lasso, "run_round", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(ValueError, match=r"\(2, 79\) do not fit the design's K=80"):
        solve(state, y[:, :79])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="of 1 queries are not finite, first of row 1"):
            solve(state, np.where(np.arange(160).reshape(2, 80) == 100, bad, y))
    for fraction in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"lambda_fraction={fraction}"):
            LassoSettings(lambda_fraction=fraction)
    with pytest.raises(ValueError, match=r"memory=1000 bytes are too few .* takes \d+: raise"):
        solve(init(design, subsets, execution=Execution(memory=1000)), y)
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
    with pytest.raises(ValueError, match=r"chunk=2.5 must be of type int"):
        LassoSettings(chunk=2.5)


def test_a_product_on_the_matrix_unit_finds_the_same():
    design, subsets, _, _, y = planted(700, 120, 5, sparsity=8, queries=5)
    tight = LassoSettings(relative_gap=1e-5)
    gathered = solve(init(design, subsets), y, tight)
    for sharded in (False, True):
        state = init(design, subsets, execution=on(2), shard_columns=sharded, one_hot=True)
        found = solve(state, y, tight)
        assert (found.relative_gap_Q <= 1e-5).all()
        np.testing.assert_allclose(found.scores_QxN, gathered.scores_QxN, atol=2e-3)
    values = np.random.default_rng(0).normal(size=(121, 3)).astype(np.float32)
    values[-1] = 0
    index = np.asarray(subsets).T
    exact = values.astype(np.float64)[index].sum(axis=0)
    np.testing.assert_allclose(passes.one_hot_product(values, index), exact, atol=2e-6)
