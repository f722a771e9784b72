"""Training, calibration and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stride_jax.models import (
    MLP,
    ModelSettings,
    ResNet9,
    TrainSettings,
    fit,
    fit_temperature,
    initial_params,
    make_model,
    pretrain,
)
from stride_jax.runtime import checkpoint


def test_models_trained_under_vmap_are_those_trained_alone(digits):
    module, settings = MLP(10, (12,)), TrainSettings(epochs=2, batch_size=16)
    inputs, labels = map(jnp.asarray, (digits["train"].inputs[:120], digits["train"].labels[:120]))
    keys = jax.random.split(jax.random.key(0), 3)
    members = jnp.stack([jax.random.permutation(k, 120)[:60] for k in keys])
    start = jax.vmap(lambda k: initial_params(module, k, inputs))(keys)

    def train(params, rows, key):
        forward = lambda p, x: module.apply({"params": p}, x)[0]  # noqa: E731
        return fit(forward, params, inputs, labels, rows, key, settings)

    together = jax.jit(jax.vmap(train))(start, members, keys)
    for i in range(3):
        alone = jax.jit(train)(jax.tree.map(lambda v: v[i], start), members[i], keys[i])  # noqa: B023
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5),  # noqa: B023
            together,
            alone,
        )


def test_training_reads_its_members_alone(digits):
    module, settings = MLP(10, (12,)), TrainSettings(epochs=2, batch_size=16)
    x, y = digits["train"].inputs[:80], digits["train"].labels[:80]
    params = initial_params(module, jax.random.key(0), jnp.asarray(x))

    def train(x):
        forward = lambda p, v: module.apply({"params": p}, v)[0]  # noqa: E731
        rows = jnp.arange(40)
        return fit(
            forward, params, jnp.asarray(x), jnp.asarray(y), rows, jax.random.key(1), settings
        )

    spoiled = x.copy()
    spoiled[40:] = 9.0
    jax.tree.map(np.testing.assert_array_equal, train(x), train(spoiled))


def test_models_learn_real_digits_and_name_their_layers(trained, digits):
    logits, _ = trained.tapped(trained.params, trained.query.inputs)
    assert (np.asarray(logits).argmax(axis=1) == trained.query.labels).mean() > 0.85
    resnet = make_model(ModelSettings("resnet9", width=4), 10)
    assert isinstance(resnet, ResNet9)
    x = jnp.asarray(digits["query"].inputs[:3])
    params = initial_params(resnet, jax.random.key(0), x)
    run = jax.jit(lambda v: resnet.apply({"params": params}, v))
    logits, seen = run(x)
    assert logits.shape == (3, 10)
    assert seen["residual0"].shape == (3, 4, 4, 8)
    assert seen["pooled"].shape == (3, 32)
    alone, _ = run(x[:1])
    np.testing.assert_allclose(logits[:1], alone, rtol=1e-4, atol=1e-5)


def test_temperature_against_a_grid():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(500, 4))
    gumbel = rng.gumbel(size=truth.shape)
    labels = (truth + gumbel).argmax(axis=1)  # a draw from softmax(truth)
    found = fit_temperature(3.0 * truth, labels)
    grid = np.exp(np.linspace(np.log(1), np.log(9), 4000))
    losses = [
        np.mean(np.log(np.exp(3 * truth / t).sum(axis=1)) - (3 * truth / t)[np.arange(500), labels])
        for t in grid
    ]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
    assert found == pytest.approx(3.0, rel=0.25)
    with pytest.raises(ValueError, match="no held-out examples"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="diverged"):
        fit_temperature(np.full((2, 3), np.nan), np.zeros(2, int))


def test_checkpoints_come_back_and_foreign_ones_are_named(trained, tmp_path):
    checkpoint.save(tmp_path / "model", trained.params, {"temperature": 1.5})
    params, config = checkpoint.restore(tmp_path / "model", jax.eval_shape(lambda: trained.params))
    jax.tree.map(np.testing.assert_array_equal, params, trained.params)
    assert config == {"temperature": 1.5}
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint at .*nothing"):
        checkpoint.restore(tmp_path / "nothing", trained.params)
    other = initial_params(MLP(10, (24, 17)), jax.random.key(0), jnp.zeros((1, 64)))
    with pytest.raises(
        checkpoint.CheckpointError,
        match=r"model can't be restored.*\(16,\) there, \(17,\) here.*delete",
    ):
        checkpoint.restore(tmp_path / "model", other)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="optimizer='adma'"):
        TrainSettings(optimizer="adma")
    with pytest.raises(ValueError, match="model kind='cnn'"):
        ModelSettings("cnn")


def test_more_checkpoints_than_steps_are_refused(digits):
    train = digits["train"].inputs[:40], digits["train"].labels[:40]
    with pytest.raises(ValueError, match=r"num_checkpoints=3 of a training of 2 steps.*fewer"):
        pretrain(MLP(10, (12,)), *train, TrainSettings(epochs=1, batch_size=20), 3)
