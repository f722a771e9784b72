"""The Lasso against scikit-learn, planted supports and its own certificate."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

from stride_jax.design import Design, membership, subset_sum
from stride_jax.recovery import LassoSettings, init, solve


def planted(num_train, num_subsets, degree, sparsity, queries, seed=0):
    """Design, its dense M, true influences and noiseless measurements."""
    design = Design(num_subsets, degree)
    subsets = membership(design, [str(i) for i in range(num_train)])
    rng = np.random.default_rng(seed)
    w = np.zeros((queries, num_train), np.float32)
    for row in w:
        support = rng.choice(num_train, sparsity, replace=False)
        row[support] = rng.uniform(0.5, 1.5, sparsity) * rng.choice([-1, 1], sparsity)
    y = np.asarray(subset_sum(subsets, jnp.asarray(w.T), num_subsets)).T
    m = np.asarray(subset_sum(subsets, jnp.eye(num_train), num_subsets))
    return init(design, subsets), m, w, y


def test_planted_signals_are_found_and_agree_with_scikit_learn():
    """The issue's own setting: N = 4,500, K = 1000, d = 10, 30-sparse, 200 queries."""
    state, m, w, y = planted(4500, 1000, 10, sparsity=30, queries=200)
    found = solve(state, y, LassoSettings(lambda_fraction=0.02))
    top = np.argsort(-np.abs(found.scores_QxN), axis=1)[:, :30]
    right = [set(row) == set(np.flatnonzero(true)) for row, true in zip(top, w, strict=True)]
    assert np.mean(right) >= 0.99
    assert found.relative_gap_Q.max() <= 1e-4
    assert found.kkt_Q.max() < 1e-2
    found = solve(state, y[:3], LassoSettings(lambda_fraction=0.02, relative_gap=1e-6))
    for q in range(3):
        reference = Lasso(alpha=found.lambda_Q[q] / 1000, tol=1e-10, max_iter=100_000)
        reference.fit(m.astype(np.float64), y[q].astype(np.float64))
        difference = np.linalg.norm(found.scores_QxN[q] - reference.coef_)
        assert difference <= 1e-3 * np.linalg.norm(reference.coef_)


def test_noisy_measurements_agree_with_scikit_learn():
    state, m, _, y = planted(600, 150, 5, sparsity=10, queries=4, seed=1)
    y = y + np.random.default_rng(2).normal(size=y.shape).astype(np.float32)
    found = solve(state, y, LassoSettings(lambda_fraction=0.1, relative_gap=1e-6))
    for q in range(4):
        reference = Lasso(alpha=found.lambda_Q[q] / 150, tol=1e-10, max_iter=100_000)
        reference.fit(m.astype(np.float64), y[q].astype(np.float64))
        np.testing.assert_allclose(found.scores_QxN[q], reference.coef_, atol=2e-3)
        centred = m - m.mean(axis=0)
        yc = y[q] - y[q].mean()
        best, ours = (
            0.5 * ((yc - centred @ v) ** 2).sum() + found.lambda_Q[q] * np.abs(v).sum()
            for v in (reference.coef_, found.scores_QxN[q].astype(np.float64))
        )
        gap = found.relative_gap_Q[q] * 0.5 * (yc**2).sum()
        assert ours - best <= gap + 1e-5 * ours, "the certificate bounds the distance to optimal"


def test_lambda_max_silences_a_query_and_not_below():
    state, _, _, y = planted(300, 80, 4, sparsity=5, queries=3)
    at_max = solve(state, y, LassoSettings(lambda_fraction=1.0))
    assert np.abs(at_max.scores_QxN).max() < 1e-6 * np.abs(y).max()
    below = solve(state, y, LassoSettings(lambda_fraction=0.95))
    assert (below.support_Q >= 1).all()


def test_queries_do_not_depend_on_their_company():
    state, _, _, y = planted(300, 80, 4, sparsity=5, queries=7)
    whole = solve(state, y, LassoSettings(chunk=64))
    parts = solve(state, y, LassoSettings(chunk=2))
    np.testing.assert_allclose(parts.scores_QxN, whole.scores_QxN, rtol=1e-3, atol=1e-5)
    shifted = solve(state, y + 5.0)
    np.testing.assert_allclose(shifted.scores_QxN, whole.scores_QxN, rtol=1e-2, atol=1e-3)


def test_a_query_without_signal_scores_zero_and_bad_input_is_refused():
    state, _, _, y = planted(300, 80, 4, sparsity=5, queries=2)
    y = np.where(np.arange(2)[:, None] == 1, np.float32(3), y)
    found = solve(state, y)
    assert found.support_Q[1] == 0
    assert found.lambda_Q[1] == 0
    assert found.support_Q[0] > 0
    with pytest.raises(ValueError, match=r"\(2, 79\) do not fit the design's K=80"):
        solve(state, y[:, :79])
    with pytest.raises(
        ValueError, match="measurements of 1 queries are not finite, first of row 1"
    ):
        solve(state, np.where(y == 3.0, np.nan, y))
    with pytest.raises(ValueError, match=r"lambda_fraction=0.0"):
        LassoSettings(lambda_fraction=0.0)
