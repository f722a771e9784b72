"""Low-rank fine-tuning, against factors that are trained by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stride_jax.models import (
    ModelSettings,
    TrainSettings,
    fit,
    initial_params,
    make_model,
    pretrain,
)
from stride_jax.models.gpt import GPTSettings
from stride_jax.models.lora import LoRASettings, closed, opened
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution

RECIPE = TrainSettings(epochs=1, batch_size=4, optimizer="adamw", learning_rate=1e-2,
                       lora=LoRASettings(rank=2, alpha=4.0, layers=("query", "down")))  # fmt: skip


@pytest.fixture(scope="module")
def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 11, (12, 8)).astype(np.int32)
    return inputs, np.roll(inputs, -1, axis=1)


@pytest.fixture(scope="module")
def module():
    gpt = GPTSettings(depth=2, width=16, num_heads=2, num_kv_heads=2, sequence_len=8,
                      smear=False)  # fmt: skip
    return make_model(ModelSettings("gpt", gpt=gpt), 11)


@pytest.fixture(scope="module")
def start(module, tokens):
    params = initial_params(module, jax.random.key(3), tokens[0])
    # Matrices of zeros would leave nothing to compare.
    return jax.tree.map(lambda v: v + 0.05 * jnp.cos(jnp.arange(v.size).reshape(v.shape)), params)


def test_nothing_changes_before_training(start) -> None:
    """B is zero, so a model with its factors is the model."""
    again = closed(opened(start, RECIPE.lora, jax.random.key(0)), RECIPE.lora)
    jax.tree.map(np.testing.assert_array_equal, again, start)


def test_factors_are_trained_and_nothing_else(module, start, tokens) -> None:
    """Against a loop over A and B of the named layers, with optax' adamw on these alone."""
    inputs, labels = tokens
    forward = lambda p, x: module.apply({"params": p}, x)[0]  # noqa: E731
    key = jax.random.key(5)
    ours = fit(forward, start, inputs, labels, np.arange(12), key, RECIPE)

    def merged(low):
        flat = jax.tree_util.tree_flatten_with_path(start)[0]
        out = {}
        for path, v in flat:
            name = "/".join(p.key for p in path)
            own = low.get(name.removesuffix("/kernel"))
            out[name] = v if own is None else v + 2.0 * own[0] @ own[1]
        tree = {}
        for name, v in out.items():
            *above, last = name.split("/")
            functools.reduce(lambda t, n: t.setdefault(n, {}), above, tree)[last] = v
        return tree

    def loss(low, x, y):
        logits = forward(merged(low), x)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1)
        return -picked.mean()

    drawn = opened(start, RECIPE.lora, jax.random.fold_in(key, 1))["factors"]
    low = {n.removesuffix("/kernel"): (own["a"], own["b"]) for n, own in drawn.items()}
    assert {name.split("/")[-1] for name in low} == {"query", "down"}
    tx = optax.adamw(optax.cosine_decay_schedule(1e-2, 3), weight_decay=0.0)
    moments = tx.init(low)
    order = jax.random.permutation(jax.random.split(key, 1)[0], jnp.arange(12)).reshape(3, 4)
    for rows in order:
        grads = jax.grad(loss)(low, inputs[rows], labels[rows])
        updates, moments = tx.update(grads, moments, low)
        low = optax.apply_updates(low, updates)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), ours, merged(low))
    changed = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (path[-2:][0].key, bool((np.asarray(a) != np.asarray(b)).any())),
        ours,
        start,
    )
    pairs = jax.tree.leaves(changed, is_leaf=lambda v: isinstance(v, tuple))
    assert {name for name, moved in pairs if moved} == {"query", "down"}


@pytest.mark.parametrize("parameters", ["replicated", "sharded"])
def test_factors_on_a_mesh(module, start, tokens, parameters: str) -> None:
    """Split over devices, with checkpoints: as on one device."""
    devices = meshes.single_mesh(), meshes.arranged((2, 2), jax.devices()[:4])
    train = functools.partial(
        pretrain, module, *tokens, RECIPE, 3, start=start, parameters=parameters
    )
    (one, _), (many, _) = (train(execution=Execution(mesh)) for mesh in devices)
    assert len(many) == 3
    near = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(lambda x, y: near(meshes.fetch(x), meshes.fetch(y)), one, many)
    assert jax.tree.structure(many[0]) == jax.tree.structure(start)


def test_bad_layers_are_named(start) -> None:
    with pytest.raises(ValueError, match=r"lora.layers has 'q', but .* query, "):
        opened(start, LoRASettings(layers=("q",)), jax.random.key(0))
    with pytest.raises(ValueError, match="rank=0"):
        LoRASettings(rank=0)
