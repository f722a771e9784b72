"""Taps: what is one, how they are named, and gradients at them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from stride_jax import taps
from stride_jax.adapters import from_linen, from_model
from stride_jax.examples import Examples
from stride_jax.observed import forward_all, forward_and_pull, forward_batch


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(jnp.tanh(nn.Dense(5, name="body")(x)))


def plain(params, x):
    body = x @ params["body"]["kernel"] + params["body"]["bias"][None]
    return rest_of(params, x, {"body": body}), {"input": x, "body": body}


def rest_of(params, x, replace):
    head = params["head"]
    return jnp.tanh(replace["body"]) @ head["kernel"] + head["bias"][None]


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (6, 4))


@pytest.fixture(scope="module")
def params(x):
    return Linen().init(jax.random.key(1), x)["params"]


def test_pulled_errors_are_gradients_of_the_loss_at_the_tap(trained, params, x):
    labels, weights = jnp.arange(6) % 3, jnp.linspace(0.5, 1.0, 6)
    digits = jnp.asarray(trained.query.inputs[:6])
    models = [
        (from_linen(Linen()), params, "body", x),
        (taps.from_function(plain, suffix=rest_of), params, "body", x),
        (trained.tapped, trained.params, "hidden0", digits),
    ]
    for tapped, weights_of, name, inputs in models:
        calibrated = taps.only(taps.with_temperature(tapped, 2.0), (name,))
        batch = {"inputs": inputs, "labels": labels, "weights": weights}
        observed, pull_back = forward_and_pull(calibrated, weights_of, batch, name)
        alone = forward_batch(calibrated, weights_of, **batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), observed, alone)

        def loss(z, run=calibrated.suffix, params=weights_of, inputs=inputs, name=name):
            logits = run(params, inputs, {name: z.reshape(6, -1)})
            return -jax.nn.log_softmax(logits)[jnp.arange(6), labels].sum()

        expected = -jax.grad(loss)(alone.activations[name])
        pulled = pull_back(alone.errors())
        np.testing.assert_allclose(pulled, expected, rtol=1e-5, atol=1e-7)


def test_our_models_replace_what_they_hand_out(trained):
    x = jnp.asarray(trained.query.inputs[:5])
    logits, activations = trained.tapped(trained.params, x)
    assert set(activations) == {"input", "dense0", "hidden0", "dense1", "hidden1"}
    np.testing.assert_array_equal(jax.nn.relu(activations["dense1"]), activations["hidden1"])
    z = activations["hidden0"] * 0.5
    params = trained.params
    hidden = jax.nn.relu(z @ params["dense1"]["kernel"] + params["dense1"]["bias"][None])
    expected = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
    rest = trained.tapped.suffix(params, x, {"hidden0": z})
    np.testing.assert_allclose(rest, expected, rtol=1e-5, atol=1e-5)
    calibrated = taps.with_temperature(trained.tapped, 2.0)
    np.testing.assert_allclose(calibrated(params, x)[0], logits / 2, rtol=1e-6)
    assert calibrated.suffix is not None
    cooled = calibrated.suffix(params, x, {"hidden0": z})
    np.testing.assert_allclose(cooled, expected / 2, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unknown tap 'nowhere'"):
        trained.tapped.suffix(params, x, {"nowhere": x})


def test_what_is_no_tap_is_left_out_and_refused_by_name():
    """Tokens, a table without a row per example, a row per example where logits have tokens."""

    def model(p, tokens):
        table = jnp.zeros((5, 3))
        embedded = p[tokens] + table[None]
        extra = {"input": tokens, "table": table, "pooled": embedded.mean(axis=1), "sum": 1.0}
        return embedded @ p.T, {"embedded": embedded, **extra}

    p, tokens = jnp.ones((7, 3)), jnp.zeros((4, 5), int)
    tapped = taps.from_function(model)
    assert set(tapped(p, tokens)[1]) == {"embedded"}
    for name, described in (
        ("input", r"int32 of shape \(4, 5\)"),
        ("table", r"float32 of shape \(5, 3\)"),
        ("pooled", r"float32 of shape \(4, 3\)"),
        ("sum", "a float"),
    ):
        with pytest.raises(ValueError, match=rf"'{name}' is {described}.*has \['embedded'\]"):
            taps.from_function(model, [name])(p, tokens)
    # As many examples as tokens: the table passes for a tap at this batch size alone.
    square = lambda p, x: (x @ p, {"input": x, "table": jnp.zeros((2, 3))})  # noqa: E731
    x = jnp.ones((2, 4))
    assert set(taps.from_function(square)(jnp.ones((4, 3)), x)[1]) == {"input", "table"}
    by_hand = taps.TappedModel(lambda p, x: (p[x], {"input": x, "embedded": p[x]}))
    assert taps.tap_names(taps.from_function(square), jnp.ones((4, 3)), x) == ("input",)
    assert taps.tap_names(by_hand, p, tokens[:, 0]) == ("embedded",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("input", r"taps='input' is one string.*taps=\('input',\)"),
        ((), "empty: leave it out"),
        (("input", "body", "input"), "names 'input' 2 times"),
        ((3,), "holds 3: a tap is named by a string"),
        (("input", ""), "holds '': a tap"),
    ],
)
def test_names_of_taps_are_checked_before_anything_runs(names, said):
    with pytest.raises(ValueError, match=said):
        taps.from_function(plain, names)
    with pytest.raises(ValueError, match=said):
        from_linen(Linen(), names)


def test_unknown_taps_and_foreign_outputs_are_refused(trained, params, x):
    there = r"\['dense0', 'dense1', 'hidden0', 'hidden1', 'input'\]"
    with pytest.raises(ValueError, match=f"unknown tap 'hiden0'.*{there}"):
        from_model(trained.module, ["hiden0"])(trained.params, trained.query.inputs[:2])
    for function, said in (
        (lambda p, x: x, r"returns float32 of shape \(6, 4\), not \(logits, \{tap: activation\}\)"),
        (lambda p, x: (x, x), "returns a tuple, not"),
        (lambda p, x: ([x], {"input": x}), "logits are a list"),
    ):
        with pytest.raises(ValueError, match=said):
            taps.from_function(function)(params, x)


def test_observing_does_not_depend_on_the_batch_size(trained):
    whole = forward_all(trained.tapped, trained.params, trained.query, batch_size=512)
    parts = forward_all(trained.tapped, trained.params, trained.query, batch_size=7)
    assert whole.logits_NxTxC.shape == (len(trained.query), 1, 10)
    assert whole.activations["input"].shape == (len(trained.query), 1, 64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)


def test_bad_observations_are_refused(trained):
    inputs, params = trained.query.inputs, trained.params
    with pytest.raises(ValueError, match=r"labels run up to 10, .* 10 classes"):
        forward_all(trained.tapped, params, Examples(inputs[:2], np.array([0, 10])))
    nothing = jax.tree.map(lambda v: v * jnp.nan, params)
    with pytest.raises(ValueError, match=r"not finite for 2 of 2"):
        forward_all(trained.tapped, nothing, Examples(inputs[:2], np.array([0, 1])))
    with pytest.raises(
        ValueError, match=r"logits of shape \(1, 10\) for one example do not fit labels"
    ):
        forward_all(trained.tapped, params, Examples(inputs[:4], np.zeros((4, 3), int)))
