"""One network in every framework, and what each adapter refuses.

The plain function is the oracle: every framework gets its weights, so that its logits, its taps,
the rest of the network and the scores must be the same.
"""

import collections
import pathlib
import re
import sys
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

import stride_jax
from stride_jax import Design, IndexSettings
from stride_jax.adapters import from_equinox, from_haiku, from_linen, from_model, from_nnx
from stride_jax.taps import TappedModel, from_function, tap_names

FRAMEWORKS = ("linen", "nnx", "equinox", "haiku")


class Case(NamedTuple):
    """An adapted model, its own call, and its names of the hidden layer and of the logits."""

    tapped: TappedModel
    params: Any
    own: Any
    hidden: str
    last: str


# ── Five lines each: a network of two layers, adapted ────────────────────────────────────────────


def plain(p, x, replace={}):  # noqa: B006
    x = replace.get("input", x)
    hidden = replace.get("hidden", x @ p["w1"] + p["b1"][None])
    logits = jnp.tanh(hidden) @ p["w2"] + p["b2"][None]
    return logits, {"input": x, "hidden": hidden, "logits": logits}


def plain_case(p):
    rest = lambda p, x, replace: replace.get("logits", plain(p, x, replace)[0])  # noqa: E731
    return Case(from_function(plain, suffix=rest), p, lambda x: plain(p, x)[0], "hidden", "logits")


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, name="head")(jnp.tanh(nn.Dense(16, name="body")(x)))


def linen_case(p):
    params = {
        "body": {"kernel": p["w1"], "bias": p["b1"]},
        "head": {"kernel": p["w2"], "bias": p["b2"]},
    }
    own = lambda x: Linen().apply({"params": params}, x)  # noqa: E731
    return Case(from_linen(Linen()), params, own, "body", "head")


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.List([nnx.Linear(64, 16, rngs=rngs)])
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.body[0](x)))


def nnx_case(p):
    model = Nnx(nnx.Rngs(0))
    for layer, w, b in ((model.body[0], "w1", "b1"), (model.head, "w2", "b2")):
        layer.kernel.set_value(p[w])
        layer.bias.set_value(p[b])
    return Case(*from_nnx(model), model, "body/0", "head")


def equinox_case(p):
    model = eqx.nn.MLP(64, 10, 16, 1, activation=jnp.tanh, key=jax.random.key(0))
    where = lambda m: [v for layer in m.layers for v in (layer.weight, layer.bias)]  # noqa: E731
    model = eqx.tree_at(where, model, [p["w1"].T, p["b1"], p["w2"].T, p["b2"]])
    return Case(*from_equinox(model), jax.vmap(model), "layers/0", "layers/1")


def haiku_case(p):
    net = lambda x: hk.Sequential([hk.Linear(16), jnp.tanh, hk.Linear(10)])(x)  # noqa: E731
    transformed = hk.without_apply_rng(hk.transform(net))
    params = {"linear": {"w": p["w1"], "b": p["b1"]}, "linear_1": {"w": p["w2"], "b": p["b2"]}}
    own = lambda x: transformed.apply(params, x)  # noqa: E731
    return Case(from_haiku(transformed), params, own, "linear", "linear_1")


CASES = {
    "plain": plain_case,
    "linen": linen_case,
    "nnx": nnx_case,
    "equinox": equinox_case,
    "haiku": haiku_case,
}


# ── The same numbers in each ─────────────────────────────────────────────────────────────────────


def descended(logits, params, inputs, labels, steps=150, rate=0.5):
    """Parameters after plain gradient descent."""

    def loss(p):
        each = jax.nn.log_softmax(logits(p, inputs))
        return -jnp.take_along_axis(each, labels[..., None], axis=-1).mean()

    step = lambda _, p: jax.tree.map(lambda v, g: v - rate * g, p, jax.grad(loss)(p))  # noqa: E731
    return jax.jit(lambda p: jax.lax.fori_loop(0, steps, step, p))(params)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.data[:220] / 16).astype(np.float32), data.target[:220].astype(np.int32)


@pytest.fixture(scope="module")
def weights(digits):
    one, two = jax.random.split(jax.random.key(0))
    p = {
        "w1": jax.random.normal(one, (64, 16)) / 8,
        "b1": jnp.zeros(16),
        "w2": jax.random.normal(two, (16, 10)) / 4,
        "b2": jnp.zeros(10),
    }
    return descended(lambda p, x: plain(p, x)[0], p, *map(jnp.asarray, digits))


def scores(tapped, params, inputs, labels, queries=20, num_subsets=60):
    """Scores of the last rows, from an index of the others, default taps."""
    settings = IndexSettings(design=Design(num_subsets, 4))
    fitted = stride_jax.fit(tapped, params, inputs[:-queries], labels[:-queries], settings)
    attribution = stride_jax.attribute(tapped, params, fitted, inputs[-queries:], labels[-queries:])
    found = np.asarray(attribution)
    assert found.shape == (queries, len(inputs) - queries)
    assert np.isfinite(found).all()
    assert (np.abs(found).max(axis=1) > 0).mean() > 0.5, "most queries have influences"
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_logits_taps_and_the_rest_of_the_network_are_the_frameworks_own(framework, weights, digits):
    x = jnp.asarray(digits[0][:6])
    tapped, params, own, hidden, last = CASES[framework](weights)
    logits, activations = tapped(params, x)
    expected, of_plain = plain(weights, x)
    np.testing.assert_allclose(logits, own(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(activations[hidden], of_plain["hidden"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(activations["input"], x)

    z = jax.random.normal(jax.random.key(3), (6, 16))
    rest = plain(weights, x, {"hidden": z})[0]
    np.testing.assert_allclose(tapped.suffix(params, x, {hidden: z}), rest, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(tapped.suffix(params, x, {last: expected}), expected)
    halved = tapped.suffix(params, x, {"input": x / 2})
    np.testing.assert_allclose(halved, plain(weights, x / 2)[0], rtol=1e-4, atol=1e-4)
    moved, noted = tapped.shifted(params, x, {hidden: z - of_plain["hidden"]})
    np.testing.assert_allclose(moved, rest, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(noted[hidden], z, rtol=1e-4, atol=1e-4)

    for form in (tapped.suffix, tapped.shifted):
        with pytest.raises(ValueError, match="unknown tap 'nowhere'"):
            form(params, x, {"nowhere": x})
    with pytest.raises(ValueError, match=rf"the tap '{hidden}' has shape"):
        tapped.suffix(params, x, {hidden: x})


@pytest.fixture(scope="module")
def plain_scores(weights, digits):
    return scores(*plain_case(weights)[:2], *digits)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_scores_with_default_taps_are_those_of_the_plain_function(
    framework, weights, digits, plain_scores
):
    found = scores(*CASES[framework](weights)[:2], *digits)
    np.testing.assert_allclose(found, plain_scores, atol=1e-3 * np.abs(plain_scores).max())


def test_without_a_suffix_all_taps_are_read_and_said(weights, digits):
    with pytest.warns(UserWarning, match=r"no suffix.*all of \['hidden', 'input', 'logits'\]"):
        frozen = stride_jax.freeze(from_function(plain), weights, stride_jax.Examples(*digits))
    assert frozen.settings.taps == ("hidden", "input", "logits")


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = jnp.tanh(nn.Dense(16)(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(x)
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x))


@pytest.fixture(scope="module")
def normed(digits):
    """A linen network with batch norm: its module and all of its collections."""
    x, labels = map(jnp.asarray, digits)
    module = Normed()
    variables = module.init(jax.random.key(0), x, train=False)
    # The statistics of the training set.
    _, updated = module.apply(
        variables, x, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
    )
    run = lambda p, x: module.apply({"params": p, **updated}, x, train=False)  # noqa: E731
    params = descended(run, variables["params"], x, labels, rate=0.1)
    return module, {"params": params, **updated}


def test_batch_norm_of_linen_runs_in_inference(normed, digits):
    module, variables = normed
    tapped = from_linen(module, train=False)

    def written(variables, x, replace={}):  # noqa: B006
        p, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
        x = replace.get("input", x)
        body = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"][None]
        body = replace.get("Dense_0", body)
        scale = p["BatchNorm_0"]["scale"] / jnp.sqrt(stats["var"] + 1e-5)
        norm = (jnp.tanh(body) - stats["mean"][None]) * scale[None]
        norm = replace.get("BatchNorm_0", norm + p["BatchNorm_0"]["bias"][None])
        norm = replace.get("Dropout_0", norm)
        logits = norm @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"][None]
        logits = replace.get("Dense_1", logits)
        named = {"Dense_0": body, "BatchNorm_0": norm, "Dropout_0": norm, "Dense_1": logits}
        return logits, {"input": x, **named}

    by_hand = from_function(written, suffix=lambda *args: written(*args)[0])
    x = jnp.asarray(digits[0][:5])
    own = module.apply(variables, x, train=False)
    np.testing.assert_allclose(tapped(variables, x)[0], own, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        tapped(variables, x),
        by_hand(variables, x),
    )
    expected = scores(by_hand, variables, *digits)
    found = scores(tapped, variables, *digits)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


# ── Integer inputs ───────────────────────────────────────────────────────────────────────────────

VOCABULARY, LENGTH, WIDTH = 32, 8, 12


@pytest.fixture(scope="module")
def words():
    """Windows of this repository's README, `[N, T]` tokens and the tokens after them."""
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    spoken = re.findall(r"[a-z]+", text.lower())[: 70 * LENGTH + 1]
    common = [w for w, _ in collections.Counter(spoken).most_common(VOCABULARY - 1)]
    tokens = np.array([common.index(w) if w in common else VOCABULARY - 1 for w in spoken])
    cut = lambda v: v[: len(v) // LENGTH * LENGTH].reshape(-1, LENGTH).astype(np.int32)  # noqa: E731
    return cut(tokens[:-1]), cut(tokens[1:])


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        x = x + nn.Embed(LENGTH, WIDTH, name="place")(jnp.arange(LENGTH))[None]
        mask = nn.make_causal_mask(tokens)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x), mask=mask)
        return nn.Dense(VOCABULARY, name="head")(x)


def test_a_transformer_of_tokens_with_default_taps(words):
    inputs, labels = words
    params = Transformer().init(jax.random.key(0), inputs)["params"]
    run = lambda p, x: Transformer().apply({"params": p}, x)  # noqa: E731
    params = descended(run, params, jnp.asarray(inputs), jnp.asarray(labels))
    tapped = from_linen(Transformer())
    logits, activations = tapped(params, inputs)
    np.testing.assert_allclose(logits, run(params, inputs), rtol=1e-5, atol=1e-5)
    assert activations["attention"].shape == (*inputs.shape, WIDTH)
    # As many rows as tokens: the table of positions looks like an activation, and is none.
    names = tap_names(tapped, params, inputs)
    assert {"embed", "attention", "LayerNorm_0", "head"} <= set(names)
    assert not {"input", "place"} & set(names)
    rest = tapped.suffix(params, inputs, {"attention": jnp.zeros_like(activations["attention"])})
    without = jax.tree.map_with_path(
        lambda path, v: v * ("'out'" not in jax.tree_util.keystr(path)), params
    )
    np.testing.assert_allclose(rest, run(without, inputs), rtol=1e-5, atol=1e-5)
    scores(tapped, params, inputs, labels, queries=6, num_subsets=24)


def embed_plain(p, tokens):
    embedded = p["table"][tokens]
    return embedded @ p["head"], {"input": tokens, "embed": embedded}


class EmbedLinen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(VOCABULARY, name="head")(nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens))


class EmbedNnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.embed(tokens))


class Lookup(eqx.Module):
    table: eqx.nn.Embedding

    def __call__(self, tokens):
        return jax.vmap(self.table)(tokens)


class EmbedEquinox(eqx.Module):
    embed: Lookup
    head: eqx.nn.Linear

    def __init__(self, key):
        self.embed = Lookup(eqx.nn.Embedding(VOCABULARY, WIDTH, key=key))
        self.head = eqx.nn.Linear(WIDTH, VOCABULARY, key=key)

    def __call__(self, tokens):
        return jax.vmap(self.head)(self.embed(tokens))


def embed_haiku(tokens):
    return hk.Linear(VOCABULARY, name="head")(hk.Embed(VOCABULARY, WIDTH, name="embed")(tokens))


def embedding_model(framework, tokens):
    """`(tapped, params)` of an embedding and a linear layer."""
    key = jax.random.key(0)
    match framework:
        case "linen":
            return from_linen(EmbedLinen()), EmbedLinen().init(key, tokens)["params"]
        case "nnx":
            return from_nnx(EmbedNnx(nnx.Rngs(0)))
        case "equinox":
            return from_equinox(EmbedEquinox(key))
        case "haiku":
            transformed = hk.transform(embed_haiku)
            return from_haiku(transformed), transformed.init(key, tokens)
        case _:
            table, head = jax.random.normal(key, (2, VOCABULARY, WIDTH))
            rest = lambda p, x, replace: replace["embed"] @ p["head"]  # noqa: E731
            return from_function(embed_plain, suffix=rest), {"table": table, "head": head.T}


@pytest.mark.parametrize("framework", [*FRAMEWORKS, "plain"])
def test_integer_inputs_are_no_tap_in_any_adapter(framework, words):
    inputs, labels = words
    tapped, params = embedding_model(framework, inputs)
    names = tap_names(tapped, params, inputs)
    assert "embed" in names
    assert "input" not in names
    scores(tapped, params, inputs, labels, queries=6, num_subsets=24)
    if framework != "plain":  # its suffix is its own
        with pytest.raises(ValueError, match="unknown tap 'input'"):
            tapped.suffix(params, inputs, {"input": inputs.astype(np.float32)})


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
    alone = eqx.nn.Embedding(VOCABULARY, VOCABULARY, key=jax.random.key(0))
    mapped = Lookup(alone)
    tapped, params = from_equinox(mapped)
    with pytest.raises(ValueError, match=r"nothing to tap.*\['table'\].*outside of vmap"):
        tapped(params, jnp.zeros((2, LENGTH), int))


# ── Training mode, collections and arguments ─────────────────────────────────────────────────────


def test_linen_modules_need_all_collections_and_inference(normed, digits):
    module, variables = normed
    x = digits[0][:4]
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
        from_linen(stride_jax.models.MLP(3, (4,)))(*_initial(stride_jax.models.MLP(3, (4,)), x))
    with pytest.raises(
        ValueError, match=r"returns float32 of shape \(4, 10\), not \(logits.*from_linen"
    ):
        from_model(Linen())(*_initial(Linen(), x))


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


def test_nnx_modules_in_training_mode_are_switched_and_said(digits):
    x = jnp.asarray(digits[0][:6])
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


def test_equinox_models_with_state_run_in_inference(digits):
    x = jnp.asarray(digits[0][:6])
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


def test_haiku_functions_with_state_run_in_inference(digits):
    x = jnp.asarray(digits[0][:6])
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
