"""Removal against direct fits; retrieval and mislabel detection against brute force."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from stride_jax import evaluation
from stride_jax.data import Examples
from stride_jax.evaluation.retrain import model_keys
from stride_jax.models import MLP, TrainSettings, fit, initial_params

RECIPE = TrainSettings(epochs=4, batch_size=16, learning_rate=0.1)
SETTINGS = evaluation.CounterfactualSettings(
    top_k=(3, 30, 500), num_seeds=2, num_controls=3, models_at_once=5
)


@pytest.fixture(scope="module")
def world(digits):
    train, query = digits["train"], digits["query"]
    cut = lambda e, n: Examples(e.inputs[:n], e.labels[:n], e.ids[:n])  # noqa: E731
    return evaluation.Retraining(MLP(10, (8,)), cut(train, 200), cut(query, 4), RECIPE)


@pytest.fixture(scope="module")
def reference(world):
    return evaluation.counterfactual_reference(world, SETTINGS)


@functools.partial(jax.jit, static_argnames=("forward", "settings"))
def direct_fit(forward, *args, settings):
    return fit(forward, *args, settings)


@pytest.fixture(scope="module")
def forward(world):
    return lambda p, x: world[0].apply({"params": p}, x)[0]


def probability(forward, world, rows):
    """True class's probability after direct fits on some rows, mean over seeds."""
    module, train, query = world[:3]
    total = 0.0
    for key in model_keys(0, np.zeros(2), np.arange(2)):
        init_key, order_key = jax.random.split(key)
        params = initial_params(module, init_key, jnp.asarray(train.inputs))
        args = (forward, params, train.inputs, train.labels, rows, order_key)
        params = direct_fit(*args, settings=RECIPE)
        p = np.asarray(jax.nn.softmax(forward(params, jnp.asarray(query.inputs))))
        total = total + p[np.arange(len(query)), query.labels] / 2
    return total


def test_removal_equals_training_without_the_examples(forward, world, reference):
    scores = np.random.default_rng(0).normal(size=(4, 200))
    result = evaluation.counterfactual_removal(world, scores, SETTINGS, reference)
    assert result.top_k == (3, 30), "500 examples can't be removed from 200"
    full = probability(forward, world, np.arange(200))
    np.testing.assert_allclose(reference.full_Q, full, atol=1e-4)
    for q in (0, 3):
        rows = np.sort(np.argsort(-scores[q])[30:])
        direct = full[q] - probability(forward, world, rows)[q]
        assert result.drop_ZxQ[1, q] == pytest.approx(direct, abs=1e-4)
    np.testing.assert_allclose(result.drop_Z, result.drop_ZxQ.mean(axis=1))
    for mean, (low, high) in zip(result.drop_Z, result.drop_ci95, strict=True):
        assert low <= mean <= high


def test_removing_a_querys_class_hurts_and_removing_at_random_does_not(world, reference):
    _, train, query = world[:3]
    same_class = (query.labels[:, None] == train.labels).astype(np.float32)
    result = evaluation.counterfactual_removal(world, same_class, SETTINGS, reference)
    random = reference.random
    assert random.top_k == result.top_k
    assert result.drop_Z[1] > 0.3
    assert abs(random.drop_Z[1]) < 0.15
    # The reference made on the way is the one made before.
    one = dataclasses.replace(SETTINGS, top_k=(30,))
    alone = evaluation.counterfactual_removal(world, same_class, one)
    np.testing.assert_allclose(alone.drop_ZxQ[0], result.drop_ZxQ[1], atol=1e-4)


def test_bad_removals_are_refused(world, reference):
    scores = np.zeros((4, 200))
    with pytest.raises(ValueError, match=r"scores of shape \(200, 4\) do not fit 4 queries"):
        evaluation.counterfactual_removal(world, scores.T, SETTINGS)
    other, too_many = (
        world._replace(training=dataclasses.replace(RECIPE, epochs=5)),
        dataclasses.replace(SETTINGS, top_k=(300,)),
    )
    with pytest.raises(ValueError, match="made with another model, recipe, data or settings"):
        evaluation.counterfactual_removal(other, scores, SETTINGS, reference)
    with pytest.raises(ValueError, match=r"top_k=\(300,\): none is below num_train=200"):
        evaluation.counterfactual_reference(world, too_many)
    with pytest.raises(ValueError, match=r"top_k=\(0, 5\): use distinct numbers from 1"):
        evaluation.CounterfactualSettings(top_k=(0, 5))


# ── retrieval and mislabels ──────────────────────────────────────────────────────────────────────


def test_retrieval_against_brute_force():
    rng = np.random.default_rng(1)
    scores, relevant = rng.normal(size=(30, 50)), rng.random((30, 50)) < 0.1
    relevant[:, 0] = True
    recall, mrr = [], []
    for s, r in zip(scores, relevant, strict=True):
        order = sorted(range(50), key=lambda i: -s[i])
        recall.append(sum(r[i] for i in order[:7]) / sum(r))
        mrr.append(1 / (1 + next(rank for rank, i in enumerate(order) if r[i])))
    result = evaluation.recall_at_k(scores, relevant, 7)
    np.testing.assert_allclose(result.per_query_Q, recall)
    assert result.mean == pytest.approx(np.mean(recall))
    assert result.ci95[0] < result.mean < result.ci95[1]
    np.testing.assert_allclose(evaluation.mean_reciprocal_rank(scores, relevant).per_query_Q, mrr)


def test_ties_tell_nothing_wherever_the_relevant_examples_lie():
    scores, relevant = np.zeros((4000, 20)), np.zeros((4000, 20), bool)
    relevant[:, 0] = True
    assert evaluation.recall_at_k(scores, relevant, 5).mean == pytest.approx(0.25, abs=0.02)
    expected = (1 / np.arange(1, 21)).mean()
    result = evaluation.mean_reciprocal_rank(scores, relevant).mean
    assert result == pytest.approx(expected, abs=0.02)


def test_mislabel_auc_against_sklearn():
    rng = np.random.default_rng(2)
    wrong = rng.random(300) < 0.1
    scores = np.round(rng.normal(size=300) + wrong, 1)  # with ties
    expected = sklearn.metrics.roc_auc_score(wrong, scores)
    assert evaluation.mislabel_auc(scores, wrong) == pytest.approx(expected)
    with pytest.raises(ValueError, match="0 of 300 examples are mislabelled"):
        evaluation.mislabel_auc(scores, np.zeros(300, bool))
    with pytest.raises(ValueError, match=r"\(299,\) scores for \(300,\) examples"):
        evaluation.mislabel_auc(scores[1:], wrong)


def test_bad_retrievals_are_refused():
    scores, relevant = np.zeros((3, 5)), np.eye(3, 5, dtype=bool)
    with pytest.raises(ValueError, match="k=6 must lie in 1 to 5"):
        evaluation.recall_at_k(scores, relevant, 6)
    with pytest.raises(ValueError, match="differ in shape; the layout is"):
        evaluation.mean_reciprocal_rank(scores.T, relevant)
    with pytest.raises(ValueError, match="3 of 3 queries have no relevant example"):
        evaluation.mean_reciprocal_rank(scores, ~relevant & False)
