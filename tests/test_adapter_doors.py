"""What adapters refuse or switch: training mode, missing state, odd layers, arguments."""

import sys

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from stride_jax.adapters import from_equinox, from_haiku, from_linen, from_model, from_nnx
from stride_jax.models import MLP


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (6, 64))


# ── Layers that are called twice, or inside a transformation ─────────────────────────────────────


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        return nn.Dense(3, name="head")(jnp.tanh(shared(jnp.tanh(shared(x)))))


class TwiceNnx(nnx.Module):
    def __init__(self, rngs):
        self.shared = nnx.Linear(4, 4, rngs=rngs)
        self.tied = self.shared
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.tied(jnp.tanh(self.shared(x)))))


def twice_haiku(x):
    shared = hk.Linear(4, name="shared")
    return hk.Linear(3, name="head")(jnp.tanh(shared(jnp.tanh(shared(x)))))


@pytest.mark.parametrize("framework", ["linen", "nnx", "haiku"])
def test_each_call_of_a_shared_layer_is_a_tap(framework):
    x = jax.random.normal(jax.random.key(0), (5, 4))
    if framework == "linen":
        tapped, params = from_linen(Twice()), Twice().init(jax.random.key(1), x)["params"]
        w = params["shared"]["kernel"]
    elif framework == "nnx":
        tapped, params = from_nnx(TwiceNnx(nnx.Rngs(1)))
        w = params["shared"]["kernel"].get_value()
    else:
        transformed = hk.transform(twice_haiku)
        tapped, params = from_haiku(transformed), transformed.init(jax.random.key(1), x)
        w = params["shared"]["w"]
    logits, activations = tapped(params, x)
    assert set(activations) == {"input", "shared", "shared#2", "head"}
    np.testing.assert_allclose(activations["shared"], x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(activations["shared#2"], jnp.tanh(x @ w) @ w, rtol=1e-5, atol=1e-6)
    for name in ("shared", "shared#2"):
        same = tapped.suffix(params, x, {name: activations[name]})
        np.testing.assert_allclose(same, logits, rtol=1e-5, atol=1e-6)
    later = tapped.suffix(params, x, {"shared#2": jnp.zeros((5, 4)), "shared": x})
    np.testing.assert_allclose(later, jnp.zeros((5, 3)), atol=1e-6)


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(4, name="saved")(x)
        step = nn.scan(
            lambda layer, x, _: (jnp.tanh(layer(x)), None), variable_axes={"params": 0},
            split_rngs={"params": True}, length=3,
        )  # fmt: skip
        x = step(nn.Dense(4, name="repeated"), x, None)[0]
        many = {"params": 0, "intermediates": 0}
        heads = nn.vmap(nn.Dense, variable_axes=many, split_rngs={"params": True}, in_axes=0)
        return nn.Dense(3, name="head")(heads(4, name="per_row")(x))


def test_layers_inside_a_transformation_are_no_taps_but_checkpointed_ones_are():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    params = Deep().init(jax.random.key(1), x)["params"]
    tapped = from_linen(Deep())
    logits, activations = tapped(params, x)
    assert set(activations) == {"input", "saved", "head"}
    np.testing.assert_allclose(logits, Deep().apply({"params": params}, x), rtol=1e-6)
    halved = {"saved": jax.tree.map(lambda v: v / 2, params["saved"])}
    rest = tapped.suffix(params, x, {"saved": activations["saved"] / 2})
    np.testing.assert_allclose(rest, Deep().apply({"params": params | halved}, x), rtol=1e-6)
    with pytest.raises(ValueError, match=r"'per_row' has shape.*tap a layer outside"):
        tapped.suffix(params, x, {"per_row": x})


class Mapped(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self.layer)(x)


def test_layers_mapped_over_tokens_are_no_taps():
    tapped, params = from_equinox(Mapped(eqx.nn.Linear(3, 5, key=jax.random.key(0))))
    assert set(tapped(params, jnp.ones((2, 4, 3)))[1]) == {"input"}
    with pytest.raises(ValueError, match=r"'layer' has shape \(5,\).*not \(4, 5\).*inside vmap"):
        tapped.suffix(params, jnp.ones((2, 4, 3)), {"layer": jnp.ones((2, 4, 5))})
    with pytest.raises(
        ValueError, match=r"nothing to tap.*\['layer'\] none is called outside of vmap"
    ):
        tapped(params, jnp.ones((2, 4, 3), int))


class Names(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="input")(x)
        self.sow("intermediates", "noted", x)
        return nn.Dense(3, name="head")(x)


def test_the_name_of_the_inputs_and_sown_values_are_told_from_layers(x):
    of_another_call = {"head": {"__call__": (jnp.zeros((6, 3)),)}}
    variables = {**Names().init(jax.random.key(1), x), "intermediates": of_another_call}
    tapped = from_linen(Names())
    logits, activations = tapped(variables, x)
    assert set(activations) == {"input", "head"}
    np.testing.assert_array_equal(activations["input"], x)
    np.testing.assert_array_equal(activations["head"], logits)
    np.testing.assert_allclose(tapped.suffix(variables, x, {"input": x}), logits, rtol=1e-6)


# ── Training mode, collections and arguments ─────────────────────────────────────────────────────


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(10)(x))


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x)


def test_linen_modules_need_all_collections_and_inference(x):
    module = Normed()
    variables = module.init(jax.random.key(0), x, train=False)
    alone = {"params": variables["params"]}
    for params in (alone, alone["params"]):
        with pytest.raises(
            ValueError, match=r'"batch_stats".*hold \[\'params\'\] alone; give every'
        ):
            from_linen(module, train=False)(params, x)
    with pytest.raises(ValueError, match=r'"batch_stats".*training mode.*train=False'):
        from_linen(module)(variables, x)
    with pytest.raises(ValueError, match=r"PRNG.*draws no random numbers.*deterministic=True"):
        from_linen(nn.Dropout(0.5, deterministic=False))({}, x)
    with pytest.raises(
        ValueError, match=r"train=True.*'training'.*from_linen\(model, name=value\)"
    ):
        from_linen(module, training=False)
    with pytest.raises(ValueError, match=r"missing a required argument.*'key'"):
        from_equinox(lambda x, key: x)
    with pytest.raises(ValueError, match=r"needs logits alone.*from_model"):
        from_linen(MLP(3, (4,)))(*_initial(MLP(3, (4,)), x))
    with pytest.raises(
        ValueError, match=r"returns float32 of shape \(6, 10\), not \(logits.*from_linen"
    ):
        from_model(Plain())(*_initial(Plain(), x))


def _initial(module, x):
    return module.init(jax.random.key(0), x)["params"], x


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(64, 10, rngs=rngs), nnx.BatchNorm(10, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.none = nnx.Dropout(0.0)

    def __call__(self, x):
        return self.none(self.drop(self.layers[1](self.layers[0](x))))


class Counting(nnx.Module):
    def __init__(self):
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return x


def test_nnx_modules_in_training_mode_are_switched_and_said(x):
    model = Noisy(nnx.Rngs(0))
    with pytest.warns(UserWarning, match=r"^drop \(Dropout\), layers/1 \(BatchNorm\) in training"):
        tapped, params = from_nnx(model)
    assert not model.drop.deterministic, "the user's own is left alone"
    kinds = {type(v) for _, v in nnx.to_flat_state(params)}
    assert kinds == {nnx.Param, nnx.BatchStat}, "no random state among the parameters"
    model.eval()
    np.testing.assert_allclose(tapped(params, x)[0], model(x), rtol=1e-6)
    same, params = from_nnx(model)  # and no warning
    np.testing.assert_array_equal(same(params, x)[0], tapped(params, x)[0])
    tapped, params = from_nnx(Counting())
    with pytest.raises(ValueError, match="changes its state 'calls'"):
        tapped(params, x)


class Stateful(eqx.Module):
    layers: list
    drop: eqx.nn.Dropout
    attention: eqx.nn.MultiheadAttention

    def __init__(self, key):
        self.layers = [
            eqx.nn.Linear(64, 10, key=key),
            eqx.nn.BatchNorm(10, axis_name="batch", mode="batch"),
        ]
        self.drop = eqx.nn.Dropout(0.5)
        self.attention = eqx.nn.MultiheadAttention(1, 10, key=key)  # its dropout has p = 0

    def __call__(self, x, state, scale=1.0):
        x, state = self.layers[1](self.layers[0](x), state)
        return scale * self.attention(*(self.drop(x)[None],) * 3)[0], state


def test_equinox_models_with_state_run_in_inference(x):
    model, state = eqx.nn.make_with_state(Stateful)(jax.random.key(0))
    with pytest.warns(UserWarning, match=r"^layers/1 \(BatchNorm\), drop \(Dropout\) in training"):
        tapped, params = from_equinox(model, state=state, scale=2.0)
    assert not model.drop.inference, "the user's own is left alone"
    run = jax.vmap(eqx.nn.inference_mode(model), in_axes=(0, None), out_axes=(0, None))
    logits, activations = tapped(params, x)
    np.testing.assert_allclose(logits, 2 * run(x, state)[0], rtol=1e-5, atol=1e-6)
    assert set(activations) == {"input", "layers/0", "drop", "attention"}


def haiku_normed(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(10)(x), is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training is None else x


def test_haiku_functions_with_state_run_in_inference(x):
    transformed = hk.transform_with_state(haiku_normed)
    params = transformed.init(jax.random.key(0), x, is_training=True)
    logits, activations = from_haiku(transformed, is_training=False)(params, x)
    np.testing.assert_allclose(logits, transformed.apply(*params, None, x, False)[0], rtol=1e-6)
    assert set(activations) == {"input", "linear", "batch_norm"}
    with pytest.raises(ValueError, match=r"changes its state 'batch_norm.*is_training=False"):
        from_haiku(hk.without_apply_rng(transformed), is_training=True)(params, x)
    with pytest.raises(ValueError, match=r"pair \(params, state\).*got a dict"):
        from_haiku(transformed, is_training=False)(params[0], x)
    with pytest.raises(ValueError, match="draws random numbers"):
        from_haiku(transformed, is_training=None)(params, x)
    with pytest.raises(ValueError, match="missing a required argument: 'is_training'"):
        from_haiku(transformed)


def test_a_missing_framework_is_named(monkeypatch):
    for adapter, package, wheel in (
        (from_equinox, "equinox", "equinox"),
        (from_haiku, "haiku", "dm-haiku"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"pip install {wheel}"):
            adapter(None)
