"""Taps of linen, nnx and plain functions give the same numbers, and so do their suffixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from stride_jax import taps
from stride_jax.adapters import from_linen, from_model, from_nnx
from stride_jax.observed import forward_all, forward_and_pull, forward_batch
from stride_jax.operators import logit_errors


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(jnp.tanh(nn.Dense(5, name="body")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.List([nnx.Linear(4, 5, rngs=rngs)])
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.body[0](x)))


def plain(params, x):
    body = x @ params["body"]["kernel"] + params["body"]["bias"][None]
    logits = jnp.tanh(body) @ params["head"]["kernel"] + params["head"]["bias"][None]
    return logits, {"input": x, "body": body}


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (6, 4))


@pytest.fixture(scope="module")
def three(x):
    """The same network three times: `[(tapped, params, name of its hidden tap)]`."""
    module = Linen()
    params = module.init(jax.random.key(1), x)["params"]
    other = Nnx(nnx.Rngs(0))
    for ours, theirs in ((other.body[0], params["body"]), (other.head, params["head"])):
        ours.kernel.set_value(theirs["kernel"])
        ours.bias.set_value(theirs["bias"])
    tapped_nnx, state = from_nnx(other, ["input", "body/0"])

    def suffix(params, x, replace):
        return jnp.tanh(replace["body"]) @ params["head"]["kernel"] + params["head"]["bias"][None]

    return [
        (from_linen(module, ["input", "body"]), params, "body"),
        (tapped_nnx, state, "body/0"),
        (taps.from_function(plain, suffix=suffix), params, "body"),
    ]


def test_linen_nnx_and_plain_functions_give_the_same_numbers(three, x):
    reference, activations = plain(three[0][1], x)
    for tapped, params, name in three:
        logits, seen = tapped(params, x)
        np.testing.assert_allclose(logits, reference, rtol=1e-6)
        np.testing.assert_allclose(seen[name], activations["body"], rtol=1e-6)
        np.testing.assert_array_equal(seen["input"], x)


def test_suffix_is_the_rest_of_the_network(three, x):
    z = jax.random.normal(jax.random.key(2), (6, 5))
    head = three[0][1]["head"]
    expected = jnp.tanh(z) @ head["kernel"] + head["bias"][None]
    for tapped, params, name in three:
        np.testing.assert_allclose(tapped.suffix(params, x, {name: z}), expected, rtol=1e-6)


def test_pulled_errors_are_gradients_of_the_loss_at_the_tap(trained, three, x):
    labels, weights = jnp.arange(6) % 3, jnp.linspace(0.5, 1.0, 6)
    models = [*three, (trained.tapped, trained.params, "hidden0")]
    for tapped, params, name in models:
        inputs = jnp.asarray(trained.query.inputs[:6]) if tapped is trained.tapped else x
        calibrated = taps.only(taps.with_temperature(tapped, 2.0), (name,))
        seen, pull_back = forward_and_pull(calibrated, params, inputs, labels, weights, name)
        plain = forward_batch(calibrated, params, inputs, labels, weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), seen, plain)

        def loss(z, run=calibrated.suffix, params=params, inputs=inputs, name=name):
            logits = run(params, inputs, {name: z.reshape(6, -1)})
            return -jax.nn.log_softmax(logits)[jnp.arange(6), labels].sum()

        expected = -jax.grad(loss)(plain.activations[name])
        found = pull_back(logit_errors(plain))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_our_models_replace_what_they_hand_out(trained):
    x = jnp.asarray(trained.query.inputs[:5])
    logits, seen = trained.tapped(trained.params, x)
    assert list(seen) == ["hidden0", "hidden1", "input"] or set(seen) == {
        "input",
        "hidden0",
        "hidden1",
    }
    z = seen["hidden0"] * 0.5
    params = trained.params
    hidden = jax.nn.relu(z @ params["dense1"]["kernel"] + params["dense1"]["bias"][None])
    expected = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
    found = trained.tapped.suffix(params, x, {"hidden0": z})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    calibrated = taps.with_temperature(trained.tapped, 2.0)
    np.testing.assert_allclose(calibrated(params, x)[0], logits / 2, rtol=1e-6)
    assert calibrated.suffix is not None
    np.testing.assert_allclose(
        calibrated.suffix(params, x, {"hidden0": z}), expected / 2, rtol=1e-5, atol=1e-5
    )


def test_unknown_taps_are_refused_with_those_there_are(trained, three, x):
    with pytest.raises(
        ValueError, match=r"unknown tap 'hiden0'.*\['hidden0', 'hidden1', 'input'\]"
    ):
        from_model(trained.module, ["hiden0"])(trained.params, trained.query.inputs[:2])
    for tapped, params, _ in three[:2]:
        with pytest.raises(ValueError, match="unknown tap 'nowhere'"):
            tapped.suffix(params, x, {"nowhere": x})


def test_observing_does_not_depend_on_the_batch_size(trained):
    q = trained.query
    whole = forward_all(trained.tapped, trained.params, q.inputs, q.labels, batch_size=512)
    parts = forward_all(trained.tapped, trained.params, q.inputs, q.labels, batch_size=7)
    assert whole.logits_NxTxC.shape == (len(q), 1, 10)
    assert whole.activations["input"].shape == (len(q), 1, 64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)


def test_bad_observations_are_refused(trained):
    q, params = trained.query, trained.params
    with pytest.raises(ValueError, match=r"labels run from 0 to 10, .* 10 classes"):
        forward_all(trained.tapped, params, q.inputs[:2], np.array([0, 10]))
    with pytest.raises(ValueError, match="got 3, 2, 2"):
        forward_all(trained.tapped, params, q.inputs[:3], q.labels[:2])
    with pytest.raises(ValueError, match=r"not finite for 2 of 2"):
        forward_all(
            trained.tapped, jax.tree.map(lambda v: v * jnp.nan, params), q.inputs[:2], q.labels[:2]
        )
    with pytest.raises(
        ValueError, match=r"logits of shape \(1, 10\) for one example do not fit labels"
    ):
        forward_all(trained.tapped, params, q.inputs[:4], np.zeros((4, 3), int))
