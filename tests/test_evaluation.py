"""The bank's durability, and LDS against independent computations."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from stride_jax import evaluation
from stride_jax.baselines.gradients import gradient_dot
from stride_jax.baselines.simple import feature_cosine, random_scores
from stride_jax.data import Examples
from stride_jax.evaluation.bank import bank_key, draw_subsets
from stride_jax.evaluation.statistics import bootstrap_mean, spearman_brown
from stride_jax.models import MLP, TrainSettings
from stride_jax.taps import observe

SETTINGS = evaluation.BankSettings(num_subsets=5, num_seeds=2, models_at_once=4)
RECIPE = TrainSettings(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def small(digits):
    train, query = digits["train"], digits["query"]
    cut = lambda e, n: Examples(e.inputs[:n], e.labels[:n], e.ids[:n])  # noqa: E731
    return MLP(10, (8,)), cut(train, 60), cut(query, 20)


def test_a_resumed_bank_equals_an_uninterrupted_one(small, tmp_path):
    whole = evaluation.build_bank(*small, RECIPE, SETTINGS, tmp_path / "whole")
    evaluation.build_bank(*small, RECIPE, SETTINGS, tmp_path / "killed")
    home = tmp_path / "killed" / bank_key(*small, RECIPE, SETTINGS)
    shards = sorted(home.glob("models-*.npz"))
    assert len(shards) == 3
    shards[1].unlink()  # killed before this one
    shards[2].write_bytes(shards[2].read_bytes()[:100])  # a torn disk
    untouched = shards[0].stat().st_mtime_ns
    resumed = evaluation.build_bank(*small, RECIPE, SETTINGS, tmp_path / "killed")
    np.testing.assert_array_equal(resumed.losses_MxExQ, whole.losses_MxExQ)
    assert shards[0].stat().st_mtime_ns == untouched
    assert shards[2].with_suffix(".corrupt").exists(), "a corrupt shard is set aside"


def test_a_bank_is_keyed_by_all_that_matters(small):
    module, train, query = small
    key = bank_key(*small, RECIPE, SETTINGS)
    assert key == bank_key(*small, RECIPE, dataclasses.replace(SETTINGS, models_at_once=9))
    flipped = Examples(train.inputs, train.labels[::-1], train.ids)
    others = [
        bank_key(MLP(10, (9,)), train, query, RECIPE, SETTINGS),
        bank_key(module, flipped, query, RECIPE, SETTINGS),
        bank_key(*small, dataclasses.replace(RECIPE, epochs=3), SETTINGS),
        bank_key(*small, RECIPE, dataclasses.replace(SETTINGS, alpha=0.4)),
    ]
    assert len({key, *others}) == 5


def test_the_bank_holds_the_losses_of_models_trained_on_its_subsets(small, tmp_path):
    bank = evaluation.build_bank(*small, RECIPE, SETTINGS, tmp_path)
    again = evaluation.build_bank(
        *small, RECIPE, dataclasses.replace(SETTINGS, models_at_once=1), tmp_path / "alone"
    )
    np.testing.assert_allclose(bank.losses_MxExQ, again.losses_MxExQ, rtol=1e-3, atol=1e-4)
    assert (bank.losses_MxExQ[:, 0] != bank.losses_MxExQ[:, 1]).any(), "seeds differ"
    np.testing.assert_array_equal(bank.target_QxM, -bank.losses_MxExQ.mean(axis=1).T)
    larger = draw_subsets(60, dataclasses.replace(SETTINGS, num_subsets=8))
    np.testing.assert_array_equal(larger[:5], bank.members_MxS)
    for row in bank.members_MxS:
        assert len(set(row)) == 30


def bank_of(losses, members):
    return evaluation.Bank(members, losses.astype(np.float32), SETTINGS, 0.0)


def test_lds_against_scipy():
    rng = np.random.default_rng(0)
    members = np.stack([np.sort(rng.permutation(40)[:20]) for _ in range(30)])
    losses, scores = rng.normal(size=(30, 2, 6)), rng.normal(size=(6, 40)).astype(np.float32)
    result = evaluation.lds(scores, bank_of(losses, members))
    for q in range(6):
        predicted = [scores[q, rows].sum() for rows in members]
        expected = scipy.stats.spearmanr(predicted, -losses[:, :, q].mean(axis=1)).statistic
        assert result.per_query_Q[q] == pytest.approx(expected, abs=1e-6)
    assert result.lds == pytest.approx(result.per_query_Q.mean())
    assert result.ci95[0] < result.lds < result.ci95[1]
    with pytest.raises(ValueError, match="scores have 5 queries, the bank 6"):
        evaluation.lds(scores[:5], bank_of(losses, members))


def test_an_additive_world_scores_one_and_its_mirror_minus_one():
    rng = np.random.default_rng(1)
    members = draw_subsets(40, dataclasses.replace(SETTINGS, num_subsets=30))
    scores = rng.normal(size=(6, 40)).astype(np.float32)
    losses = -np.stack([scores[:, rows].sum(axis=1) for rows in members])[:, None]
    assert evaluation.lds(scores, bank_of(losses, members)).lds == pytest.approx(1)
    assert evaluation.lds(-scores, bank_of(losses, members)).lds == pytest.approx(-1)


def test_ceiling_recovers_a_known_reliability():
    rng = np.random.default_rng(2)
    signal, noise = rng.normal(size=(400, 1, 50)), rng.normal(size=(400, 4, 50))
    found = evaluation.ceiling(bank_of(signal + noise, np.zeros((400, 1), np.int32)))
    # Pearson of two halves: 1 / (1 + 1/2); of all four: 1 / (1 + 1/4). Spearman is a bit lower.
    assert found.half_vs_half == pytest.approx(2 / 3, abs=0.03)
    assert found.reliability == pytest.approx(0.8, abs=0.03)
    assert found.perfect_predictor == pytest.approx(np.sqrt(found.reliability))
    assert spearman_brown(0.5, 1) == 0.5


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(3).normal(size=400)
    _, (low, high) = bootstrap_mean(values, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_baselines_against_brute_force(trained):
    train, query = ((e.inputs[:9], e.labels[:9]) for e in (trained.train, trained.query))

    def flat(x, y):
        def loss(p):
            logits = trained.module.apply({"params": p}, x[None])[0][0]
            return jax.nn.logsumexp(logits) - logits[y]

        return np.concatenate([g.ravel() for g in jax.tree.leaves(jax.grad(loss)(trained.params))])

    a, b = (np.stack([flat(*row) for row in zip(*pair, strict=True)]) for pair in (query, train))
    found = gradient_dot(
        trained.tapped, trained.params, train, query, batch_size=4, max_bytes=4 * a.shape[1] * 5
    )
    np.testing.assert_allclose(found, a @ b.T, rtol=1e-3, atol=1e-4 * np.abs(a @ b.T).max())
    seen = [observe(trained.tapped, trained.params, *pair) for pair in (train, query)]
    h = [np.asarray(s.activations["hidden1"])[:, 0] for s in seen]
    cosine = 1 - scipy.spatial.distance.cdist(h[1], h[0], "cosine")
    np.testing.assert_allclose(feature_cosine(*seen, "hidden1"), cosine, atol=1e-5)
    assert abs(random_scores(50, 400).mean()) < 0.02


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"alpha=1.0 must lie strictly"):
        evaluation.BankSettings(alpha=1.0)
    with pytest.raises(ValueError, match="gives subsets of 0"):
        draw_subsets(3, evaluation.BankSettings(alpha=0.1))
