"""Whether training was stopped early: against loops over pairs, and what an index makes of it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

import stride_jax
from stride_jax import frozen, models, taps
from stride_jax.adapters import from_model
from stride_jax.examples import as_examples
from stride_jax.observed import Observed
from stride_jax.operators import settled
from stride_jax.operators.fisher import DECAY

SETTINGS = stride_jax.IndexSettings(design=stride_jax.Design(num_subsets=20, degree=4))


def observed_of(x_NxD: np.ndarray, logits_NxC: np.ndarray, y_N: np.ndarray) -> Observed:
    weights = np.ones((len(y_N), 1), np.float32)
    return Observed(
        {"input": jnp.asarray(x_NxD, jnp.float32)[:, None]},
        *map(jnp.asarray, (logits_NxC[:, None], y_N[:, None], weights)),
    )


def test_the_gain_is_that_of_all_pairs_of_different_examples():
    rng = np.random.default_rng(0)
    y_N, logits_NxC = rng.integers(0, 3, 12), rng.normal(size=(12, 3))
    # Orthogonal columns of one length, so that principal components are the columns themselves.
    x_NxD = np.linalg.qr(np.concatenate([np.ones((12, 1)), rng.normal(size=(12, 2))], 1))[0][:, 1:]
    b_NxR = np.concatenate([x_NxD * np.sqrt(12), np.ones((12, 1))], axis=1)

    def loss(a_RxC, b_R, o_C, y):
        return -jax.nn.log_softmax(o_C + b_R @ a_RxC)[y]

    with jax.enable_x64(True):
        zero = jnp.zeros((3, 3))
        each = [tuple(map(jnp.asarray, one)) for one in zip(b_NxR, logits_NxC, y_N, strict=True)]
        g_NxP = np.array([jax.grad(loss)(zero, *one).ravel() for one in each])
        curvature = np.mean([jax.hessian(loss)(zero, *one).reshape(9, 9) for one in each], axis=0)
        losses = [float(loss(zero, *one)) for one in each]
    gamma = DECAY * (b_NxR**2).sum(axis=1).mean() / 12
    inverse = np.linalg.inv(curvature + gamma * np.eye(9))
    pairs = [g_NxP[i] @ inverse @ g_NxP[j] for i, j in itertools.permutations(range(12), 2)]
    gain = settled.gain(observed_of(x_NxD, logits_NxC, y_N))
    np.testing.assert_allclose(gain, np.mean(pairs) / 2 / np.mean(losses), rtol=1e-4)


@pytest.fixture(scope="module")
def digits():
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    return (x[:600] / 16).astype(np.float32), y[:600]


def trained(digits, epochs):
    """A small network after so many epochs, tapped."""
    x, y = digits
    module = models.MLP(10, (16,))
    recipe = models.TrainSettings(epochs=epochs, batch_size=50, learning_rate=0.2)
    (params,), _ = models.pretrain(module, x, y, recipe, 1)
    return from_model(module), params


def test_a_model_stopped_early_is_told_from_one_that_has_settled(digits):
    x, y = digits
    for epochs, doubt, decay in ((2, 0.5, 25.6), (200, 0.005, DECAY)):
        tapped, params = trained(digits, epochs)
        own = frozen.freeze(tapped, params, as_examples(x, y), SETTINGS).settings.closed_form
        assert (own.doubt, own.decay) == (doubt, pytest.approx(decay)), epochs


def test_a_temperature_does_not_matter(digits):
    x, y = digits
    tapped, params = trained(digits, 8)
    examples = as_examples(x, y)
    own = [
        frozen.freeze(model, params, examples, SETTINGS).settings.closed_form
        for model in (tapped, taps.with_temperature(taps.with_temperature(tapped, 3.0), 0.5))
    ]
    assert 0.005 < own[0].doubt < 0.5, "a case between the ends"
    assert own[1].doubt == pytest.approx(own[0].doubt, rel=1e-3)
    assert own[1].decay == pytest.approx(own[0].decay, rel=1e-3)


def test_what_the_index_was_made_with_travels_with_it(digits, tmp_path):
    x, y = digits
    tapped, params = trained(digits, 2)
    index = stride_jax.fit(tapped, params, x, y, SETTINGS)
    index.save(tmp_path / "index.npz")
    again = stride_jax.Index.load(tmp_path / "index.npz")
    assert again.settings.closed_form.decay == pytest.approx(25.6)
    named = dataclasses.replace(index.settings.closed_form, decay=25.6, doubt=0.5)
    settings = dataclasses.replace(SETTINGS, closed_form=named)
    scores = [
        stride_jax.attribute(tapped, params, own, x[:5], y[:5], train=as_examples(x, y)).scores
        for own in (again, stride_jax.fit(tapped, params, x, y, settings))
    ]
    np.testing.assert_allclose(np.asarray(scores[0]), np.asarray(scores[1]), rtol=1e-4, atol=1e-7)


def test_a_decay_that_is_named_and_other_losses_are_left_alone(digits):
    x, y = digits
    tapped, params = trained(digits, 2)

    def closed_form(model, labels, **changes):
        own = dataclasses.replace(SETTINGS.closed_form, **changes)
        settings = dataclasses.replace(SETTINGS, closed_form=own)
        return frozen.freeze(model, params, as_examples(x, labels), settings).settings.closed_form

    assert closed_form(tapped, y, decay=1.5).doubt == 0.005
    raised = closed_form(tapped, y, doubt=0.1)
    assert (raised.doubt, raised.decay) == (0.1, pytest.approx(25.6))
    assert closed_form(tapped, y, damping=3.0).decay == DECAY
    numbers = taps.with_objective(tapped, "squared_error")
    assert closed_form(numbers, np.eye(10, dtype=np.float32)[y]).decay == DECAY
    with pytest.raises(ValueError, match="decay=0"):
        stride_jax.ClosedFormSettings(decay=0.0)
