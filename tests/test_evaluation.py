"""LDS, its ceiling and its intervals, against independent computations and known worlds."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from stride_jax import evaluation
from stride_jax.evaluation.statistics import spearman_brown, spearman_rows
from stride_jax.models import TrainSettings

SETTINGS = evaluation.BankSettings(num_subsets=5, num_seeds=2, models_at_once=4)


def bank_of(losses, members, num_train=40, **settings):
    """A synthetic bank; margins are minus the cubed losses."""
    origin = evaluation.Origin("MLP", TrainSettings(), num_train, "train", "query")
    losses = losses.astype(np.float32)
    settings = dataclasses.replace(SETTINGS, **settings)
    return evaluation.Bank(members, losses, -(losses**3), settings, origin, 0.0)


# ── LDS ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ["loss", "margin"])
@pytest.mark.parametrize("correlation", ["spearman", "pearson"])
def test_lds_against_scipy(target, correlation):
    rng = np.random.default_rng(0)
    members = np.stack([np.sort(rng.permutation(40)[:20]) for _ in range(30)])
    losses, scores = rng.normal(size=(30, 2, 6)), rng.normal(size=(6, 40)).astype(np.float32)
    bank = bank_of(losses, members)
    result = evaluation.lds(scores, bank, target=target, correlation=correlation)
    oracle = scipy.stats.spearmanr if correlation == "spearman" else scipy.stats.pearsonr
    outputs = -losses if target == "loss" else -(losses**3)
    for q in range(6):
        predicted = [scores[q, rows].sum() for rows in members]
        expected = oracle(predicted, outputs[:, :, q].mean(axis=1)).statistic
        assert result.per_query_Q[q] == pytest.approx(expected, abs=1e-5)
    assert result.lds == pytest.approx(result.per_query_Q.mean())
    assert result.ci95[0] < result.lds < result.ci95[1]
    with pytest.raises(ValueError, match="scores have 5 queries, the bank 6; 39 training examples"):
        evaluation.lds(scores[:5, :39], bank)


def test_an_additive_world_scores_one_and_its_mirror_minus_one():
    rng = np.random.default_rng(1)
    members = evaluation.draw_subsets(40, dataclasses.replace(SETTINGS, num_subsets=30))
    scores = rng.normal(size=(6, 40)).astype(np.float32)
    losses = -np.stack([scores[:, rows].sum(axis=1) for rows in members])[:, None]
    bank = bank_of(losses, members)
    for options in ({}, {"target": "margin"}, {"correlation": "pearson"}):
        assert evaluation.lds(scores, bank, **options).lds == pytest.approx(1)
        assert evaluation.lds(-scores, bank, **options).lds == pytest.approx(-1)


def test_lds_on_a_bank_of_groups_is_of_the_group_sums_with_the_loss_increase():
    rng = np.random.default_rng(2)
    groups = {"kind": "groups", "num_subsets": 12, "num_seeds": 1}
    members = evaluation.draw_subsets(40, dataclasses.replace(SETTINGS, **groups))
    losses, scores = rng.normal(size=(12, 1, 5)), rng.normal(size=(5, 40))
    found = evaluation.lds(scores, bank_of(losses, members, **groups))
    whole_loss = 0.7
    for q in range(5):
        left_out = [scores[q, np.setdiff1d(np.arange(40), rows)].sum() for rows in members]
        expected = scipy.stats.spearmanr(left_out, losses[:, 0, q] - whole_loss).statistic
        assert found.per_query_Q[q] == pytest.approx(expected)


def test_figures_of_different_protocols_are_not_compared():
    rng = np.random.default_rng(3)
    members = evaluation.draw_subsets(40, SETTINGS)
    scores, bank = rng.normal(size=(6, 40)), bank_of(rng.normal(size=(5, 2, 6)), members)
    a, b = evaluation.lds(scores, bank), evaluation.lds(scores[::-1], bank)
    difference, (low, high) = evaluation.lds_difference(a, b)
    assert difference == pytest.approx(a.lds - b.lds)
    assert low < difference < high
    margin = evaluation.lds(scores, bank, target="margin")
    with pytest.raises(ValueError, match=r"not comparable: target: 'loss' and 'margin'$"):
        evaluation.lds_difference(a, margin)
    sparser = dataclasses.replace(bank, settings=dataclasses.replace(SETTINGS, alpha=0.3))
    with pytest.raises(ValueError, match=r"not comparable: num_subsets: 5 and 4; alpha: 0.5 and"):
        evaluation.lds_difference(a, evaluation.lds(scores, sparser.take(range(4))))
    with pytest.raises(ValueError, match="correlation='kendall': use"):
        evaluation.lds(scores, bank, correlation="kendall")


# ── noise ceiling and intervals ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ["loss", "margin"])
@pytest.mark.parametrize(("seeds", "noise"), [(2, 1.5), (3, 1.0), (4, 1.0)])
def test_ceiling_recovers_a_known_truth(seeds, noise, target):
    rng = np.random.default_rng(4)
    signal, again = rng.normal(size=(400, 1, 60)), rng.normal(size=(2, 400, seeds, 60))
    # The cube that makes margins is nearly linear here, so one truth serves both targets.
    bank, replica = (bank_of(10 + 0.1 * (signal + noise * z), np.zeros((400, 1))) for z in again)
    found = evaluation.ceiling(bank, target=target)
    truth = spearman_rows(bank.target(target), replica.target(target)).mean()
    best = spearman_rows(-signal[:, 0].T, bank.target(target)).mean()
    assert found.reliability == pytest.approx(truth, abs=0.03)
    assert found.perfect_predictor == pytest.approx(best, abs=0.03)
    assert found.reliability_ci95[0] < found.reliability < found.reliability_ci95[1]
    np.testing.assert_allclose(np.sqrt(found.reliability_ci95), found.perfect_predictor_ci95)
    exact = 1 / (1 + noise**2 / seeds)
    linear = evaluation.ceiling(bank, target=target, correlation="pearson")
    assert linear.reliability == pytest.approx(exact, abs=0.03)


def test_a_bank_of_one_seed_has_no_ceiling():
    found = evaluation.ceiling(bank_of(np.zeros((5, 1, 3)), np.zeros((5, 1))))
    assert np.isnan(found.reliability)
    assert np.isnan(found.perfect_predictor_ci95).all()
    assert spearman_brown(0.5, 1) == 0.5


def test_the_interval_covers_the_true_lds_as_often_as_it_says():
    """Queries are drawn from a population of 4,000, whose mean LDS is the truth."""
    rng = np.random.default_rng(5)
    members = evaluation.draw_subsets(40, dataclasses.replace(SETTINGS, num_subsets=20))
    scores = rng.normal(size=(4000, 40))
    effect = np.stack([scores[:, rows].sum(axis=1) for rows in members])[:, None]
    # Queries differ in how well they are predicted.
    losses = -effect + rng.normal(size=(20, 2, 4000)) * rng.gamma(2, 4, 4000)
    bank = bank_of(losses, members)
    truth = evaluation.lds(scores, bank).lds
    covered = 0
    for _ in range(500):
        q = rng.integers(0, 4000, 150)
        sample = dataclasses.replace(bank, losses_MxExQ=bank.losses_MxExQ[:, :, q])
        low, high = evaluation.lds(scores[q], sample).ci95
        covered += low <= truth <= high
    assert 0.92 <= covered / 500 <= 0.98


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    rng = np.random.default_rng(6)
    values = rng.normal(size=400)
    _, (low, high) = evaluation.bootstrap_mean(values, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    # Paired: what both methods share cancels.
    shared, gap = rng.normal(size=400), 0.1 + 0.05 * rng.normal(size=400)
    mean, (low, high) = evaluation.bootstrap_difference(shared + gap, shared)
    assert mean == pytest.approx(gap.mean())
    assert high - low == pytest.approx(2 * 1.96 * gap.std() / 20, rel=0.08)
    with pytest.raises(ValueError, match="3 and 4 queries: a paired difference needs"):
        evaluation.bootstrap_difference(np.zeros(3), np.zeros(4))
