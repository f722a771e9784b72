"""The choice of lambda against scikit-learn, plain loops, and signals that are known."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from stride_jax.design import Design, membership
from stride_jax.recovery import LassoSettings, SelectionSettings, init, recover, selection, solve

K, N, QUERIES = 60, 200, 3
TIGHT = LassoSettings(lambda_fraction=0.05, relative_gap=1e-6, working_set=64)


@pytest.fixture(scope="module")
def posed():
    """A design, its dense M, and measurements: clean, noisy, and noise alone."""
    design = Design(K, 4)
    subsets = np.asarray(membership(design, [str(i) for i in range(N)]))
    m = np.zeros((K, N))
    m[subsets, np.arange(N)[:, None]] = 1
    rng = np.random.default_rng(0)
    w = np.zeros((QUERIES, N))
    for row in w[:2]:
        row[rng.choice(N, 4, replace=False)] = [2, -2, 1.5, -1.5]
    y = w @ m.T + np.array([[0.05], [0.3], [1.0]]) * rng.normal(size=(QUERIES, K)) + 3
    return init(design, subsets), m, y


def lasso(m, y, fraction):
    """scikit-learn's influences at a fraction of lambda_max."""
    top = np.abs((m - m.mean(axis=0)).T @ (y - y.mean())).max()
    return Lasso(fraction * top / len(y), tol=1e-12, max_iter=10**6).fit(m, y).coef_


def test_held_out_errors_are_those_of_scikit_learn(posed):
    state, m, y = posed
    # So few columns that no two are alike where rows are left out: the answers are unique.
    m = m[:, :40]
    state = init(Design(K, 4), np.asarray(state.table_Pxd)[:40])
    asked = SelectionSettings("best", fractions=(0.3, 0.1), folds=4, splits=2, relative_gap=1e-6)
    errors = selection.held_out_errors(state, y, TIGHT, asked)
    assert errors.shape == (3, QUERIES, K // 2)
    fold = np.random.default_rng(0).permutation(K) % 4
    at = 0
    for split in range(2):
        fitted, out = fold != split, fold == split
        for q in range(QUERIES):
            for f, fraction in enumerate((1.0, 0.3, 0.1)):
                miss = y[q] - m @ lasso(m[fitted], y[q, fitted], fraction)
                expected = (miss[out] - miss[fitted].mean()) ** 2
                got = errors[f, q, at : at + out.sum()]
                np.testing.assert_allclose(got, expected, rtol=0.02, atol=2e-3)
        at += out.sum()
    assert at == K // 2


def test_the_rules_choose_as_they_say():
    rng = np.random.default_rng(1)
    errors = rng.uniform(0.5, 1.5, (6, 40, 9))
    for rule in ("best", "one_se"):
        chosen, r2 = selection.choose(errors, rule)
        for q in range(40):
            means = [errors[f, q].mean() for f in range(6)]
            best = min(range(6), key=means.__getitem__)
            limit = means[best]
            if rule == "one_se":
                limit += errors[best, q].std() / 3
            assert chosen[q] == next(f for f in range(6) if means[f] <= limit)
            assert r2[q] == pytest.approx(1 - means[chosen[q]] / means[0])


def test_a_fixed_lambda_holds_nothing_out(posed, monkeypatch):
    state, _, y = posed
    y = np.concatenate([y, np.ones((1, K))])
    monkeypatch.setattr(selection, "keep_subsets", lambda *_: pytest.fail("held out"))
    found, worth = recover(state, y, TIGHT)
    np.testing.assert_array_equal(found.scores_QxN, solve(state, y, TIGHT).scores_QxN)
    assert worth.held_out_r2_Q is worth.stability_Q is None
    assert worth.signal_Q.tolist() == [True, True, True, False]
    assert worth.fraction_Q.tolist() == [0.05, 0.05, 0.05, 1.0]
    assert worth.support_Q.tolist() == [*found.support_Q[:3], 0]


@pytest.mark.parametrize("rule", ["best", "one_se"])
def test_signal_is_told_from_noise(posed, rule):
    state, m, y = posed
    found, worth = recover(state, y, TIGHT, SelectionSettings(rule))
    assert worth.signal_Q[:2].all()
    assert worth.held_out_r2_Q[0] > 0.9 > worth.held_out_r2_Q[1] > 0.2
    assert worth.held_out_r2_Q[2] < 0.1
    assert worth.fraction_Q[0] < worth.fraction_Q[1], "noise asks for a larger lambda"
    half = np.random.default_rng(0).permutation(K) % 2 == 0
    for q in range(QUERIES):
        if not worth.signal_Q[q]:
            assert found.support_Q[q] == worth.stability_Q[q] == found.lambda_Q[q] == 0
            continue
        fraction = worth.fraction_Q[q]
        assert fraction in SelectionSettings().fractions
        np.testing.assert_allclose(found.scores_QxN[q], lasso(m, y[q], fraction), atol=5e-3)
        supports = [np.abs(lasso(m[h], y[q, h], fraction)) > 1e-4 for h in (half, ~half)]
        overlap = (supports[0] & supports[1]).sum() / (supports[0] | supports[1]).sum()
        assert worth.stability_Q[q] == pytest.approx(overlap, abs=0.1)


def test_settings_and_designs_that_cannot_choose_are_refused(posed):
    _, _, y = posed
    for wrong, words in [
        ({"rule": "cv"}, "rule='cv': use"),
        ({"folds": 1}, "folds=1, splits=2: need 2 folds"),
        ({"fractions": (0.1, 0.2)}, "must fall from below 1"),
        ({"fractions": ()}, "must fall from below 1"),
        ({"relative_gap": 0.0}, "relative_gap=0.0 must lie"),
        ({"splits": 1.5}, "splits=1.5 must be of type int"),
    ]:
        with pytest.raises(ValueError, match=words):
            SelectionSettings(**wrong)
    few = init(Design(4, 1), np.arange(4)[:, None])
    with pytest.raises(ValueError, match=r"folds=5 of K=4 measurements: too few; use rule='fixed'"):
        recover(few, y[:, :4], TIGHT, SelectionSettings("best"))
