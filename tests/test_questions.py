"""What is asked of queries: margins, contrasts, functions of one's own, many queries at once."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import stride_jax
from stride_jax import operators as ops
from stride_jax.design import Design
from stride_jax.examples import Examples
from stride_jax.measure import MeasureSettings
from stride_jax.objectives import margin
from stride_jax.settings import ExactSettings, IndexSettings, ReadSettings
from stride_jax.taps import from_function

SETTINGS = IndexSettings(
    Design(20, 3, kind="clusters"), taps=("hidden1",), basis=ops.BasisSettings(rank=12), kept=0,
)  # fmt: skip
ALL = ReadSettings(exact=ExactSettings(budget=400))


@pytest.fixture(scope="module", params=["logit", "folded", "residual"])
def fitted(request, trained):
    how = {"logit": {}, "folded": {"output_rank": 5}, "residual": {"sites": ("hidden1",)}}
    settings = IndexSettings(**{**vars(SETTINGS), **how[request.param]})
    train = trained.train
    return stride_jax.fit(
        trained.tapped, trained.params, train.inputs, train.labels, settings, ids=train.ids
    )


def asked(trained, index, read=ALL, labels=None, **more):
    few = trained.query.take(slice(6))
    labels = few.labels if labels is None else labels
    train = trained.train if read.exact.budget else None
    return stride_jax.attribute(
        trained.tapped, trained.params, index, few.inputs, labels, read, ids=few.ids, train=train,
        **more,
    ).scores_QxN  # fmt: skip


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0])
@pytest.mark.parametrize("name", ["loss", "margin"])
def test_gains_and_gradients_are_those_of_the_function(name, size):
    rng = np.random.default_rng(0)
    o, s = rng.normal(size=(50, 5)) * 4, rng.normal(size=(50, 5)) * size
    o[0] = [100, 0, 0, 0, 0]
    y = rng.integers(0, 5, 50)
    y[0] = 0

    def f(o):
        o = o - o.max(axis=-1, keepdims=True)
        true = np.eye(5, dtype=bool)[y]
        own, log_sum = (o * true).sum(-1), lambda part: np.log((np.exp(o) * part).sum(-1))
        return own - log_sum(np.ones_like(true) if name == "loss" else ~true)

    question = ops.named_question(name)
    o32, s32 = jnp.asarray(o, jnp.float32), jnp.asarray(s, jnp.float32)
    expected = f(o.astype(np.longdouble) + s) - f(o.astype(np.longdouble))
    found = question.gain(s32, o32, jnp.asarray(y))
    np.testing.assert_allclose(found, expected.astype(float), rtol=2e-4, atol=2e-6 * size)
    step = 1e-6 * np.eye(5)
    slopes = [(f(o + one) - f(o - one)) / 2e-6 for one in step]
    found = question.gradient(o32, jnp.asarray(y))
    np.testing.assert_allclose(found, np.stack(slopes, 1), atol=1e-5)


def test_a_margin_is_the_function_and_its_sketch_agrees(trained, fitted):
    exact = asked(trained, fitted, question="margin")
    own = asked(trained, fitted, question=ops.question_of(margin))
    close(own, exact)
    # By the settings as by the argument.
    named = ReadSettings(measure=MeasureSettings(question="margin"), exact=ALL.exact)
    np.testing.assert_array_equal(asked(trained, fitted, named), exact)
    # Measurements are the scores' sums over subsets, to first order.
    sketch = ReadSettings(exact=ExactSettings(budget=0))
    found = asked(trained, fitted, sketch, question="margin")
    first, second = (
        np.stack([v[:, fitted.cluster_N == k].sum(1) for k in range(20)]) for v in (found, exact)
    )
    close(first, second, 0.03)
    assert np.abs(exact - asked(trained, fitted)).max() > 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("budget", [0, 400])
def test_a_contrast_turned_round_changes_its_sign(trained, fitted, budget):
    read = ReadSettings(exact=ExactSettings(budget=budget))
    a = trained.query.labels[:6]
    b = (a + 1) % 10
    there = asked(trained, fitted, read, labels=a, against=b)
    back = asked(trained, fitted, read, labels=b, against=a)
    close(there, -back, 1e-6)
    # log p_a − log p_b = o_a − o_b, whatever the other logits.
    logits = ops.question_of(lambda o, y: (jnp.take_along_axis(o, y[..., None], -1)
        - jnp.take_along_axis(o, (y[..., None] + 1) % 10, -1))[..., 0])  # fmt: skip
    close(there, asked(trained, fitted, read, labels=a, question=logits), 2e-3)


def test_a_set_of_queries_is_the_mean_of_its_members(trained, fitted):
    alone = asked(trained, fitted)
    close(asked(trained, fitted, together="mean")[0], alone.mean(axis=0))
    weights = np.array([1.0, -1, 0, 2, 0, 0.5])
    whole = asked(trained, fitted, together=weights, question="margin")
    close(whole[0], weights @ asked(trained, fitted, question="margin"))
    assert whole.shape == (1, 400)
    highest = asked(trained, fitted, together="max")
    close(highest[0], alone.max(axis=0))


def test_a_saturated_classifier_answers_by_its_margin():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    sides = jnp.array([[-50.0, 50.0]])
    sure = from_function(lambda p, x: (jnp.sign(x[:, :1]) * sides * p, {"input": x}))
    settings = IndexSettings(Design(12, 3), taps=("input",))
    index = stride_jax.fit(sure, jnp.ones(()), x, y, settings)
    read = ReadSettings(exact=ExactSettings(budget=60))

    def ask(**more):
        return stride_jax.attribute(
            sure, jnp.ones(()), index, x[:8], y[:8], read, train=Examples(x, y), **more
        ).scores_QxN

    with pytest.warns(UserWarning, match="no measurable signal"):
        assert (ask() == 0).all()
    found = ask(question="margin")
    assert np.isfinite(found).all()
    assert (np.abs(found).max(axis=1) > 0).all()


def test_an_answer_says_what_was_asked_and_the_unit_is_of_the_loss(trained, fitted):
    few, train = trained.query.take(slice(6)), trained.train
    known = dataclasses.replace(fitted, unit=stride_jax.Unit(2.0, (1.5, 2.5)))

    def ask(index, **more):
        return stride_jax.attribute(
            trained.tapped, trained.params, index, few.inputs, few.labels, ALL, ids=few.ids,
            train=train, **more,
        )  # fmt: skip

    close(ask(known).scores_QxN, 2 * ask(fitted).scores_QxN)
    margin_asked = ask(known, question="margin", together="mean")
    assert margin_asked.unit is None
    asked = {"question": "margin", "against": False, "together": "mean"}
    assert margin_asked.settings["asked"] == asked
    close(margin_asked.scores_QxN, ask(fitted, question="margin", together="mean").scores_QxN)


def test_wrong_questions_are_refused(trained, fitted):
    with pytest.raises(ValueError, match="question='odds': use one of loss, margin"):
        asked(trained, fitted, question="odds")
    with pytest.raises(ValueError, match="question='odds'"):
        MeasureSettings(question="odds")
    with pytest.raises(ValueError, match=r"shape \(3,\) for 6 queries"):
        asked(trained, fitted, together=np.ones(3))
    with pytest.raises(ValueError, match="together='most'"):
        asked(trained, fitted, together="most")
    with pytest.raises(ValueError, match="queries, against"):
        asked(trained, fitted, against=trained.query.labels[:6] - 50)
