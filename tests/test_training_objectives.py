"""Training, banks, calibration and baselines of losses of numbers, against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn

from stride_jax import evaluation
from stride_jax.baselines import ekfac, gradients, trak
from stride_jax.baselines.model import Model
from stride_jax.baselines.projection import num_parameters, projection_matrix
from stride_jax.data import DataSettings, Examples
from stride_jax.models import (
    MLP,
    Calibration,
    TrainSettings,
    calibrate,
    fit,
    fit_sigmoid_temperature,
    initial_params,
    pretrain,
)
from stride_jax.objectives import named_objective as named
from stride_jax.objectives import objective_of, squared_error
from stride_jax.run.settings import RunSettings, run_settings
from stride_jax.runtime.files import fingerprint, plain

DECAY = 0.05
RIDGE = TrainSettings(
    epochs=400, batch_size=1000, learning_rate=0.2, weight_decay=DECAY, objective="squared_error"
)


def table(count, outputs, seed=0):
    """Rows of five numbers and noisy linear targets."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 5)).astype(np.float32)
    weights = np.random.default_rng(9).normal(size=(5, outputs))
    targets = (rows @ weights + 0.3 + 0.5 * rng.normal(size=(count, outputs))).astype(np.float32)
    return Examples(rows, targets[:, 0] if outputs == 1 else targets)


def with_one(examples):
    return np.c_[examples.inputs, np.ones(len(examples))].astype(np.float64)


def ridge(train, rows=slice(None)):
    x, y = with_one(train)[rows], train.labels.astype(np.float64).reshape(len(train), -1)[rows]
    return np.linalg.solve(x.T @ x / len(x) + DECAY * np.eye(6), x.T @ y / len(x))


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_bank_of_linear_models_is_least_squares(outputs, tmp_path):
    """Trained parameters, base model and every retrained loss are those of the normal equations."""
    train, query = table(40, outputs), table(7, outputs, seed=1)
    module = MLP(outputs, ())
    base, _ = pretrain(module, train.inputs, train.labels, RIDGE)
    head = base[0]["head"]
    np.testing.assert_allclose(
        np.vstack([head["kernel"], head["bias"][None]]), ridge(train), atol=2e-5
    )
    settings = evaluation.BankSettings(num_subsets=3, num_seeds=2, models_at_once=4)
    setup = evaluation.Retraining(module, train, query, RIDGE)
    evaluation.fill_bank(setup, settings, tmp_path)
    bank = evaluation.read_bank(setup, settings, tmp_path)
    for members, losses_ExQ in zip(bank.members_MxS, bank.losses_MxExQ, strict=True):
        residual = with_one(query) @ ridge(train, members) - query.labels.reshape(7, -1)
        expected = (residual**2).sum(axis=1) / 2
        np.testing.assert_allclose(losses_ExQ, [expected, expected], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"'margin' is about classes.*squared_error"):
        bank.target("margin")
    assert np.isnan(bank.margins_MxExQ).all()


@pytest.mark.parametrize("objective", ["sigmoid", "poisson", "squared_error"])
def test_accumulated_parts_take_the_same_step(objective):
    """Gradients are divided by tokens, however a batch is cut; a sequence's tokens all count."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 3, 4)).astype(np.float32)
    labels = rng.integers(0, 2, (8, 3, 2)).astype(np.float32)
    weights = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    rows, key = np.arange(8), jax.random.key(0)
    recipe = TrainSettings(epochs=1, batch_size=8, learning_rate=0.1, objective=objective)
    ends = [
        fit(lambda w, x: x @ w, weights, inputs, labels, rows, key, settings)
        for settings in (recipe, dataclasses.replace(recipe, accumulation=4))
    ]
    np.testing.assert_allclose(*ends, rtol=1e-5)
    o = inputs @ np.asarray(weights)
    mean = {"sigmoid": scipy.special.expit, "poisson": np.exp, "squared_error": lambda o: o}
    errors = mean[objective](o) - labels
    gradient = np.einsum("ntd,ntc->dc", inputs, errors) / 24  # 8 sequences of 3 tokens
    np.testing.assert_allclose(ends[0], np.asarray(weights) - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_calibration_fits_variance_and_temperature():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(4000, 2))
    own = calibrate("squared_error", outputs, outputs + 0.3 * rng.normal(size=(4000, 2)))
    assert own.temperature == 1
    assert own.variance == pytest.approx(0.09, rel=0.05)
    # Labels drawn at a third of the logits: the temperature is three.
    drawn = rng.random((20000, 3)) < scipy.special.expit(logits := rng.normal(size=(20000, 3)))
    assert fit_sigmoid_temperature(3 * logits, drawn) == pytest.approx(3, rel=0.05)
    assert calibrate("poisson", outputs, outputs**2) == Calibration()
    with pytest.raises(ValueError, match="residuals are all zero"):
        calibrate("squared_error", outputs, outputs)
    with pytest.raises(ValueError, match=r"targets of shape \(4000, 1\)"):
        calibrate("squared_error", outputs, outputs[:, 0])
    with pytest.raises(ValueError, match="no held-out examples"):
        calibrate("sigmoid", outputs[:0], outputs[:0])


@pytest.mark.parametrize("outputs", [1, 2])
def test_baselines_of_a_linear_model_are_dense_algebra(outputs):
    """Gradient dot, EK-FAC and TRAK of squared error, each from its formula in NumPy."""
    train, query, v = table(60, outputs), table(9, outputs, seed=1), 0.3
    module = MLP(outputs, ())
    base, _ = pretrain(module, train.inputs, train.labels, RIDGE)
    model = Model(module, tuple(base), objective=squared_error(v))
    theta = np.vstack([base[0]["head"]["kernel"], base[0]["head"]["bias"][None]]).astype(float)
    x, z = with_one(train), with_one(query)
    e = (train.labels.reshape(60, -1) - x @ theta) / v
    f = (query.labels.reshape(9, -1) - z @ theta) / v
    close = functools.partial(np.testing.assert_allclose, rtol=5e-3)
    dot = gradients.score(None, model, train, query, gradients.GradientSettings())
    close(dot, (z @ x.T) * (f @ e.T), atol=1e-3 * np.abs(dot).max())

    # With labels drawn from the noise the Fisher is XᵀX / N v, alike for every output.
    settings = ekfac.EkfacSettings(samples=400, damping=0.1)
    found = ekfac.score(ekfac.fit(model, train, settings), model, train, query, settings)
    fisher = x.T @ x / 60 / v
    damped = fisher + 0.1 * np.trace(fisher) / 6 * np.eye(6)
    expected = (z @ np.linalg.solve(damped, x.T)) * (f @ e.T)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 0.1, error  # 24,000 draws
    halved = dataclasses.replace(model, objective=squared_error(v / 2))  # draws follow the variance
    again = ekfac.score(ekfac.fit(halved, train, settings), halved, train, query, settings)
    close(again, 2 * found, atol=1e-3 * np.abs(found).max())

    settings = trak.TrakSettings(dim=32, damping=0.1)
    found = trak.score(trak.fit(model, train, settings), model, train, query, settings)
    matrix = np.asarray(projection_matrix(num_parameters(model, train.inputs), 32, 0), float)
    eye = np.eye(outputs)
    phi, own = (np.einsum("nd,cb->ncdb", rows, eye).reshape(-1, 6 * outputs) @ matrix
                for rows in (x, z))  # fmt: skip
    gram = phi.T @ phi
    kernel = own @ np.linalg.solve(gram + 0.1 * np.trace(gram) / 32 * np.eye(32), phi.T)
    expected = np.einsum("qc,qcnb,nb->qn", f, kernel.reshape(9, outputs, 60, outputs), e)
    close(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error", "sigmoid", "poisson"])
def test_drawn_labels_have_the_losses_fisher(name):
    """E[e] = 0 and E[e eᵀ] = H over labels drawn from the model."""
    objective = squared_error(0.25) if name == "squared_error" else named(name)
    outputs = jnp.broadcast_to(jnp.array([0.5, -1.0, 0.2]), (40_000, 3))
    labels = ekfac.draw_labels(objective, outputs, jax.random.key(0))
    e = np.asarray(objective.errors(outputs, labels), np.float64)
    hessian = np.asarray(objective.hessian(outputs[:1], labels[:1]).flat().total(jnp.ones(1)))
    np.testing.assert_allclose(e.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(e.T @ e / len(e), hessian, atol=0.02 * np.abs(hessian).max())


def test_summed_margins_are_traks_own_of_one_label():
    """With a single label, TRAK of the sum of margins is e(x) apart from TRAK of each output."""
    train, query = table(30, 1), table(6, 1, seed=1)
    train, query = (Examples(s.inputs, (s.labels[:, None] > 0)) for s in (train, query))
    params = initial_params(module := MLP(1, (4,)), jax.random.key(0), jnp.asarray(train.inputs))
    model = Model(module, (params,), objective=named("sigmoid"))
    scores = [
        trak.score(trak.fit(model, train, settings), model, train, query, settings)
        for settings in (trak.TrakSettings(dim=16), trak.TrakSettings(dim=16, each=False))
    ]
    p = scipy.special.expit(np.asarray(model.logits(params, query.inputs)))[:, 0]
    doubt = np.abs(query.labels[:, 0] - p)
    np.testing.assert_allclose(scores[0], scores[1] * doubt[:, None], rtol=1e-3, atol=1e-5)


def test_removal_of_numbers_is_in_nats():
    """Without an example, the loss of a query like it alone rises by what least squares says."""
    train, query = table(20, 1), table(3, 1, seed=1)
    setup = evaluation.Retraining(MLP(1, ()), train, query, RIDGE)
    settings = evaluation.CounterfactualSettings((4,), 1, 1)
    scores = np.tile(np.arange(20.0), (3, 1))
    found = evaluation.counterfactual_removal(setup, scores, settings).drop_ZxQ[0]
    loss = [
        ((with_one(query) @ ridge(train, rows))[:, 0] - query.labels) ** 2 / 2
        for rows in (slice(None), slice(16))
    ]
    np.testing.assert_allclose(found, loss[1] - loss[0], rtol=1e-2, atol=1e-4)


class TwoNumbers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x), {}


def test_wrong_labels_and_settings_are_refused_early():
    train = table(10, 1)
    with pytest.raises(ValueError, match="objective='mse'"):
        TrainSettings(objective="mse")
    with pytest.raises(ValueError, match="are numbers, but objective='cross_entropy'"):
        pretrain(MLP(2, ()), train.inputs, train.labels, TrainSettings(epochs=1))
    with pytest.raises(ValueError, match="integer classes, but objective='sigmoid'"):
        pretrain(MLP(1, ()), train.inputs, np.ones(10, int), TrainSettings(objective="sigmoid"))
    with pytest.raises(ValueError, match=r"labels of shape \(10,\).*outputs of shape \(10, 2\)"):
        pretrain(TwoNumbers(), train.inputs, train.labels, RIDGE)
    with pytest.raises(ValueError, match=r"objective='cross_entropy' does not fit.*'diabetes'"):
        RunSettings(data=DataSettings("diabetes"))
    numbers = {"data": {"name": "diabetes"}, "train": {"objective": "squared_error"}}
    with pytest.raises(ValueError, match="question='margin' is about classes"):
        run_settings(numbers | {"read": {"measure": {"question": "margin"}}})
    with pytest.raises(ValueError, match="does not fit text"):
        run_settings({"text": {}, "train": {"objective": "poisson"}})
    model = Model(MLP(1, ()), (None,), objective=objective_of(lambda o, y: o[0] ** 2, "own"))
    with pytest.raises(ValueError, match="likelihood of the loss, and that of 'own'"):
        ekfac.draw_labels(model.objective, jnp.zeros((1, 1)), jax.random.key(0))
    fresh = initial_params(MLP(1, ()), jax.random.key(0), jnp.asarray(train.inputs))
    own = Model(MLP(1, ()), (fresh,), objective=squared_error())
    with pytest.raises(ValueError, match="each=False sums up the margins"):
        trak.fit(own, train, trak.TrakSettings(each=False))


def test_the_default_objective_leaves_no_trace():
    """Banks and products from before there were objectives keep their names."""
    assert "objective" not in plain(TrainSettings())
    assert fingerprint(TrainSettings()) == "dfa4e053b5e5abbc"
    assert plain(RIDGE)["objective"] == "squared_error"
