"""One network in every framework: logits, taps, the rest of the network and scores.

The plain function is the oracle: every framework gets its weights, so that its logits, its taps,
the rest of the network and the scores must be the same.
"""

import collections
import pathlib
import re
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
from stride_jax.adapters import from_equinox, from_haiku, from_linen, from_nnx
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
    """Windows of the licence, which nobody edits: `[N, T]` tokens and the tokens after them."""
    text = (pathlib.Path(__file__).parents[1] / "LICENSE").read_text()
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
