"""Models of every kind in five lines each, taps by default: scores against dense algebra.

The oracle runs the framework's own call on one example at a time and solves the damped Fisher
densely in float64; it shares the index' basis with the library and nothing else. Models whose
inputs are several arrays must give what they give with the arrays packed into one.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

import stride_jax
from stride_jax import Examples
from stride_jax.runtime.mesh import single_mesh
from stride_jax.taps import TappedModel

ROOT = pathlib.Path(__file__).parents[1]
TRAIN, QUERIES = 120, 6
ONE = stride_jax.Execution(mesh=single_mesh())  # compiles faster than eight devices
# As many subsets as so few examples allow; all else is left at its default.
SETTINGS = stride_jax.IndexSettings(
    design=stride_jax.Design(num_subsets=40, degree=4),
    closed_form=stride_jax.ClosedFormSettings(decay=0.2),  # models of random weights
)


class Case(NamedTuple):
    """A model as this library takes it, its own call on a batch, and its data."""

    tapped: TappedModel
    params: Any
    own: Callable[[Any], Any]
    inputs: Any
    labels: np.ndarray


# ── Images ───────────────────────────────────────────────────────────────────────────────────────


def images():
    data = load_digits()
    x = data.images[: TRAIN + QUERIES, ..., None] / 16
    return x.astype(np.float32), data.target[: TRAIN + QUERIES].astype(np.int32)


class ConvAttention(eqx.Module):
    conv: eqx.nn.Conv2d
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(1, 8, 2, 2, key=key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=key)
        self.head = eqx.nn.Linear(8, 10, key=key)

    def __call__(self, x):
        tokens = self.conv(x.transpose(2, 0, 1)).reshape(8, 16).T
        return self.head(self.attention(tokens, tokens, tokens).mean(axis=0))


def equinox_conv_and_attention():
    model = ConvAttention(jax.random.key(0))
    tapped, params = stride_jax.from_equinox(model)
    return Case(tapped, params, jax.vmap(model), *images())


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training)
    return hk.Linear(10)(jax.nn.relu(x).reshape(len(x), -1))


def haiku_with_state():
    x, labels = images()
    net = hk.transform_with_state(haiku_net)
    params, state = net.init(jax.random.key(0), x, is_training=True)
    _, state = net.apply(params, state, None, x, is_training=True)
    tapped = stride_jax.from_haiku(net, is_training=False)
    own = lambda x: net.apply(params, state, None, x, is_training=False)[0]  # noqa: E731
    return Case(tapped, (params, state), own, x, labels)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.conv(x))))
        return self.head(x.reshape(len(x), -1))


def nnx_with_batch_norm_and_dropout():
    x, labels = images()
    model = NnxNet(nnx.Rngs(0))
    model(x)  # the statistics of a batch
    model.eval()
    tapped, params = stride_jax.from_nnx(model)
    return Case(tapped, params, model, x, labels)


def adapted(params, x):
    """A frozen layer in eight bits with its low-rank update, and a head that is no part of it."""
    base, lora = params["base"], params["lora"]
    kernel = base["kernel"] * base["scale"] + lora["down"] @ lora["up"]
    hidden = jnp.tanh(x.reshape(len(x), -1) @ kernel + base["bias"][None])
    return hidden @ lora["head"], {"hidden": hidden}


def lora_tree():
    """The low-rank update is trained, the base is not; beside both what a checkpoint may hold."""
    x, labels = images()
    keys = jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(keys[0], (64, 16)) / 8
    base = {
        "kernel": jnp.round(kernel * 127).astype(jnp.int8),
        "scale": 1 / 127,
        "bias": jnp.zeros(16),
    }
    lora = {
        "down": jax.random.normal(keys[1], (64, 2)) / 8,
        "up": jnp.zeros((2, 16)),
        "head": jax.random.normal(keys[2], (16, 10)) / 4,
    }

    def loss(lora):
        logits = adapted({"base": base, "lora": lora}, x)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    down = lambda _, v: jax.tree.map(lambda p, g: p - g, v, jax.grad(loss)(v))  # noqa: E731
    lora = jax.lax.fori_loop(0, 40, down, lora)
    assert float(jnp.abs(lora["up"]).max()) > 0.01
    rest = {"step": np.int64(40), "key": jax.random.key(1), "ema": None, "tied": lora["head"]}
    params = {"base": base, "lora": lora, "state": rest}
    own = lambda x: adapted(params, x)[0]  # noqa: E731
    return Case(stride_jax.from_function(adapted), params, own, x, labels)


# ── Texts of several lengths ─────────────────────────────────────────────────────────────────────

PARTS = 3
VOCABULARY, FEW, LENGTH, WIDTH = 128, 24, 8, 12


def texts():
    """Tokens and masks of pieces of the licence, and which third of it each is from."""
    spoken = np.array(re.findall(r"[a-z]+", (ROOT / "LICENSE").read_text().lower()))
    words, counts = np.unique(spoken, return_counts=True)
    thirds = np.array_split(spoken, PARTS)
    known = {w: i + 2 for i, w in enumerate(words[np.argsort(-counts)][: VOCABULARY - 2])}
    size_N = np.random.default_rng(0).integers(5, LENGTH + 1, TRAIN + QUERIES)
    label_N = np.arange(TRAIN + QUERIES) % PARTS
    tokens = np.zeros((len(size_N), LENGTH), np.int32)
    for row, (size, label) in enumerate(zip(size_N, label_N, strict=True)):
        piece = thirds[label][row // PARTS * LENGTH :][:size]
        tokens[row, :size] = [known.get(word, 1) for word in piece]
    return {"tokens": tokens, "mask": np.arange(LENGTH) < size_N[:, None]}, label_N.astype(np.int32)


class TextNet(nn.Module):
    @nn.compact
    def __call__(self, batch):
        tokens, mask = batch["tokens"], batch["mask"]
        x = nn.Embed(VOCABULARY, WIDTH)(tokens) + nn.Embed(LENGTH, WIDTH)(jnp.arange(LENGTH))[None]
        x = x + nn.MultiHeadDotProductAttention(2)(x, mask=mask[:, None, None])
        x = (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return nn.Dense(PARTS)(jnp.tanh(nn.Dense(WIDTH, name="pooled")(x)))


def text_with_padding_mask():
    batch, labels = texts()
    params = TextNet().init(jax.random.key(0), batch)["params"]
    tapped = stride_jax.from_linen(TextNet())
    own = lambda batch: TextNet().apply({"params": params}, batch)  # noqa: E731
    return Case(tapped, params, own, batch, labels)


CASES = (
    equinox_conv_and_attention, haiku_with_state, nnx_with_batch_norm_and_dropout,
    lora_tree, text_with_padding_mask,
)  # fmt: skip


# ── The oracle ───────────────────────────────────────────────────────────────────────────────────


def cut(inputs, rows):
    return jax.tree.map(lambda v: v[rows], inputs)


def one_by_one(run, inputs, count):
    """What a function says about each example alone."""
    run = jax.jit(run)
    alone = [jax.tree.map(np.asarray, run(cut(inputs, slice(i, i + 1)))) for i in range(count)]
    return jax.tree.map(lambda *v: np.concatenate(v).astype(np.float64), *alone)


def dense_scores(case, index, doubt=0.005):
    """`b_xᵀ e_x (F + gamma I)^{-1} b_i e_i / N` of all queries x and training examples i."""
    count = TRAIN + QUERIES
    logits_NxC = one_by_one(case.own, case.inputs, count)
    h = one_by_one(lambda x: case.tapped(case.params, x)[1], case.inputs, count)
    basis = jax.tree.map(np.asarray, stride_jax.operators_pytree(index)["logit"])
    taps = sorted(basis["mean"])
    x = [(h[t].reshape(count, -1) - basis["mean"][t]) / basis["scale"][t] for t in taps]
    b_NxR = np.concatenate(x, axis=1) @ np.asarray(basis["projection"], np.float64)
    b_NxR = np.append(b_NxR, np.ones((count, 1)), axis=1)
    p_NxC = np.exp(logits_NxC - logits_NxC.max(axis=1, keepdims=True))
    p_NxC /= p_NxC.sum(axis=1, keepdims=True)
    classes = p_NxC.shape[1]
    p_NxC[:TRAIN] = (1 - doubt) * p_NxC[:TRAIN] + doubt / classes
    e_NxC = np.eye(classes)[case.labels] - p_NxC
    g_NxG = np.einsum("nr,nc->nrc", b_NxR, e_NxC).reshape(count, -1)
    h_NxCxC = np.einsum("nc,co->nco", p_NxC, np.eye(classes)) - p_NxC[:, :, None] * p_NxC[:, None]
    own = slice(0, TRAIN)
    fisher = np.einsum("nr,ns,nco->rcso", b_NxR[own], b_NxR[own], h_NxCxC[own]) / TRAIN
    fisher = fisher.reshape(g_NxG.shape[1], -1)
    fisher += 0.2 * (b_NxR[own] ** 2).sum(axis=1).mean() / TRAIN * np.eye(len(fisher))
    return g_NxG[TRAIN:] @ np.linalg.solve(fisher, g_NxG[own].T) / TRAIN


def fitted(case, settings=SETTINGS, **given):
    x, y = cut(case.inputs, slice(0, TRAIN)), case.labels[:TRAIN]
    return stride_jax.fit(case.tapped, case.params, x, y, settings, **{"execution": ONE, **given})


def queries(case):
    return cut(case.inputs, slice(TRAIN, None)), case.labels[TRAIN:]


@pytest.mark.parametrize("made", CASES)
def test_scores_are_those_of_dense_algebra_on_the_models_own_outputs(made):
    case = made()
    logits = case.tapped(case.params, case.inputs)[0]
    np.testing.assert_allclose(logits, case.own(case.inputs), rtol=1e-4, atol=1e-5)
    index = fitted(case)
    expected = dense_scores(case, index)
    scale = np.abs(expected).max()
    assert scale > 1e-4
    # Examples that are kept are scored exactly; here all of them are.
    found = np.asarray(
        stride_jax.attribute(case.tapped, case.params, index, *queries(case), execution=ONE)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3 * scale)


# ── Several inputs, and parameters of any kind, at every door ────────────────────────────────────


def pooled(params, batch):
    """A classifier of masked texts, written out."""
    x = params["embed"][batch["tokens"]] * batch["mask"][..., None]
    hidden = jnp.tanh(x.sum(axis=1) / batch["mask"].sum(axis=1, keepdims=True) @ params["w"])
    return hidden @ params["head"], {"pooled": hidden}


def plain_text():
    batch, labels = texts()
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"embed": (VOCABULARY, WIDTH), "w": (WIDTH, WIDTH), "head": (WIDTH, PARTS)}
    params = {n: jax.random.normal(k, v) for k, (n, v) in zip(keys, shapes.items(), strict=True)}
    rest = lambda p, batch, replace: replace["pooled"] @ p["head"]  # noqa: E731
    tapped = stride_jax.from_function(pooled, suffix=rest)
    return Case(tapped, params, lambda batch: pooled(params, batch)[0], batch, labels)


def packed(case):
    """The same as a function of one array: tokens and mask, `[N, 2, T]`."""
    both = np.stack([case.inputs["tokens"], case.inputs["mask"].astype(np.int32)], axis=1)
    apart = lambda x: {"tokens": x[:, 0], "mask": x[:, 1].astype(bool)}  # noqa: E731
    tapped = stride_jax.from_function(
        lambda p, x: pooled(p, apart(x)), suffix=lambda p, x, replace: replace["pooled"] @ p["head"]
    )
    return case._replace(tapped=tapped, inputs=both)


def at_every_door(case, ids):
    """What each public function says, at a residual site."""
    settings = dataclasses.replace(SETTINGS, sites=("pooled",))
    tapped, params, (x, y) = case.tapped, case.params, queries(case)
    index = fitted(case, settings, ids=ids[:TRAIN])
    train = Examples(cut(case.inputs, slice(0, TRAIN)), case.labels[:TRAIN], ids[:TRAIN])
    answer = stride_jax.attribute(tapped, params, index, x, y, train=train, execution=ONE)
    suspects = stride_jax.self_influence(tapped, params, index, train, execution=ONE)
    return {
        "attribute": np.asarray(answer),
        "steer": stride_jax.steer(tapped, params, index, x, subset=1),
        "self": suspects.scores_N,
    }


def test_several_inputs_give_what_they_give_as_one_array():
    case, ids = plain_text(), np.arange(TRAIN + QUERIES).astype(str)
    found, expected = (at_every_door(c, ids) for c in (case, packed(case)))
    for name, value in found.items():
        assert float(np.abs(value).max()) > 0, name
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    report = stride_jax.check(
        case.tapped, case.params, Examples(case.inputs, case.labels), SETTINGS
    )
    assert report.level != "error"
    assert report["tells apart"].level == report["cost"].level == "ok"


def test_what_padding_holds_changes_no_score():
    case, ids = text_with_padding_mask(), np.arange(TRAIN + QUERIES).astype(str)
    tokens, mask = case.inputs["tokens"], case.inputs["mask"]
    other = np.where(mask, tokens, np.random.default_rng(1).integers(2, VOCABULARY, tokens.shape))
    settings = dataclasses.replace(SETTINGS, taps=("pooled",))

    def scores(inputs):
        own = case._replace(inputs=inputs)
        index = fitted(own, settings, ids=ids[:TRAIN])
        return np.asarray(
            stride_jax.attribute(own.tapped, own.params, index, *queries(own), execution=ONE)
        )

    found = scores(case.inputs)
    assert np.abs(found).max() > 1e-4
    np.testing.assert_array_equal(scores({"tokens": other, "mask": mask}), found)
    flipped = scores({"tokens": tokens, "mask": np.ones_like(mask)})
    assert np.abs(flipped - found).max() > 0.01 * np.abs(found).max(), "the mask is read"


def test_parameters_of_any_kind_pass_every_door():
    case = lora_tree()  # on all devices
    x, y = queries(case)
    train = Examples(cut(case.inputs, slice(0, TRAIN)), case.labels[:TRAIN])
    report = stride_jax.check(case.tapped, case.params, train, SETTINGS)
    assert report["precision"].level == report["cost"].level == "ok"
    index = fitted(case, execution=stride_jax.Execution())
    v = np.asarray(stride_jax.direct(case.tapped, case.params, index, train, (x, y)))
    np.testing.assert_allclose(v, dense_scores(case, index), atol=1e-3 * np.abs(v).max())
    moved = stride_jax.steer(case.tapped, case.params, index, x, subset=0, strength=0.0)
    np.testing.assert_allclose(moved, case.own(x), rtol=1e-5, atol=1e-6)
    for name, leaf in (("key", jax.random.key(2)), ("step", np.int64(41)), ("ema", np.ones(2))):
        state = {**case.params["state"], name: leaf}
        with pytest.raises(ValueError, match="are not those the index was fitted on"):
            stride_jax.steer(case.tapped, {**case.params, "state": state}, index, x, subset=0)


# ── Called as transformers' Flax models are ──────────────────────────────────────────────────────


@flax.struct.dataclass
class Output:
    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None


class Decoder(nn.Module):
    """A causal transformer whose head is its embedding."""

    @nn.compact
    def __call__(self, input_ids, attention_mask):
        embed = nn.Embed(FEW, WIDTH)
        first = embed(input_ids) + nn.Embed(LENGTH, WIDTH)(jnp.arange(LENGTH))[None]
        mask = nn.combine_masks(nn.make_causal_mask(input_ids), attention_mask[:, None, None] > 0)
        last = first + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(first), mask=mask)
        return Output(embed.attend(nn.LayerNorm()(last)), (first, last))


class CausalLM:
    """What a FlaxPreTrainedModel is to its caller."""

    def __init__(self, module, params):
        self.module, self.params = module, params

    def __call__(self, input_ids, attention_mask, params=None, train=False,
                 output_hidden_states=False):  # fmt: skip
        assert not train
        ids, mask = (jnp.array(v, dtype="i4") for v in (input_ids, attention_mask))
        output = self.module.apply({"params": params or self.params}, ids, mask)
        return output if output_hidden_states else output.replace(hidden_states=None)


def test_the_example_of_a_model_called_as_transformers_are():
    batch, _ = texts()
    ids, mask = batch["tokens"] % FEW, batch["mask"].astype(np.int32)
    following = np.where(batch["mask"][:, 1:], ids[:, 1:], -1)
    labels = np.append(following, np.full((len(ids), 1), -1), axis=1)
    model = CausalLM(Decoder(), Decoder().init(jax.random.key(0), ids, mask)["params"])
    (block,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs/features.md").read_text(), re.DOTALL)
    space = {"stride_jax": stride_jax, "model": model, "settings": SETTINGS,
             "ids": ids, "mask": mask, "labels": labels}  # fmt: skip
    exec(compile(block, "features.md", "exec"), space)
    tapped, index = space["tapped"], space["index"]
    logits, activations = tapped(model.params, space["batch"])
    np.testing.assert_allclose(logits, model(ids, mask).logits, rtol=1e-5, atol=1e-6)
    assert list(activations) == ["last"]

    def scores(ids):
        train = Examples({"input_ids": ids, "attention_mask": mask}, labels, index.train_ids)
        return np.asarray(
            stride_jax.direct(tapped, model.params, index, train, train.take(range(QUERIES)))
        )

    found = scores(ids)
    assert found[0, 0] > 0
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(scores(np.where(mask, ids, 7)), found)  # padding says nothing
