"""Base training on a mesh: the steps of one device, split states, rows that are read by batch."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stride_jax import evaluation
from stride_jax.data import Examples
from stride_jax.models import GPT, MLP, GPTSettings, TrainSettings, pretrain
from stride_jax.models.order import Order
from stride_jax.models.pretrain import Recipe, devices_for, program, train_piece
from stride_jax.models.train import order_batches
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.rows import Rows

pytestmark = pytest.mark.eight

RECIPE = TrainSettings(epochs=2, batch_size=40, optimizer="adamw", learning_rate=1e-3)
TOKENS = np.random.default_rng(0).integers(0, 60, (160, 17)).astype(np.int32)
GPT_SMALL = GPT(60, GPTSettings(depth=2, width=32, num_heads=2, num_kv_heads=2, sequence_len=16))


class Watched(Rows):
    """Rows of an array that note how many are read at once."""

    def __init__(self, values):
        self.values, self.most = values, 0
        self.shape, self.dtype = values.shape, values.dtype

    def read(self, rows):
        self.most = max(self.most, len(rows))
        return self.values[rows]


def apart(found, wanted):
    """Relative difference of all arrays together: rounding moves a number near zero by much."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
    distance = np.hypot.reduce([np.linalg.norm(np.asarray(a) - b) for a, b in pairs])
    return distance / np.hypot.reduce([np.linalg.norm(b) for _, b in pairs])


def test_the_order_is_that_of_models_that_train_together():
    settings = TrainSettings(epochs=5, batch_size=8)
    members, key = np.arange(3, 40, 2), jax.random.key(4)
    order = Order(members, key, settings)
    wanted = order_batches(jnp.asarray(members), key, settings)
    assert order.num_steps == len(wanted) == 11
    np.testing.assert_array_equal(order.rows(0, 11), wanted)
    for first, stop in ((9, 11), (1, 2), (2, 6)):  # in any order, over an epoch's end
        np.testing.assert_array_equal(order.rows(first, stop), wanted[first:stop])
    assert len(order._epochs) <= 2


def test_a_mesh_splits_state_and_batches_and_changes_rounding_alone(digits):
    x, y = digits["train"].inputs[:400], digits["train"].labels[:400]
    module = MLP(10, (32, 16))
    whole, rates = pretrain(module, x, y, RECIPE, 2)
    inputs, labels = Watched(x), Watched(y)
    found, same = pretrain(
        module, inputs, labels, RECIPE, 2, parameters="sharded",
        execution=Execution(meshes.make_mesh(4, 2)),
    )  # fmt: skip
    assert rates == same
    assert apart(found, whole) < 1e-5
    assert 40 <= inputs.most == labels.most <= 50 * 40, "nothing reads more than a piece"
    kernel = found[0]["dense0"]["kernel"]
    shapes = {v.addressable_shards[0].data.size / v.size for v in jax.tree.leaves(found)}
    assert shapes == {1 / 8, 1.0}
    assert kernel.addressable_shards[0].data.shape == (8, 32)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 2), (8, 1)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_twenty_steps_of_a_gpt_on_eight_devices_are_those_of_one(shape, optimizer):
    mesh = meshes.make_mesh(*shape)
    settings = dataclasses.replace(
        RECIPE, batch_size=16, optimizer=optimizer, accumulation=2, warmup=0.1
    )
    data = TOKENS[:, :-1], TOKENS[:, 1:]
    ((whole,), _), results = pretrain(GPT_SMALL, *data, settings), {}
    for parameters in ("sharded", "replicated"):
        (results[parameters],), _ = pretrain(
            GPT_SMALL, *data, settings, parameters=parameters, execution=Execution(mesh)
        )
        assert apart(results[parameters], whole) < 1e-4
    recipe = Recipe(GPT_SMALL, settings, 20, mesh, "sharded")
    state = recipe.state(whole)
    batches = meshes.place(data, recipe.batches, np.arange(32).reshape(2, 16))
    assert {b.addressable_shards[0].data.shape[:2] for b in batches} == {(2, 2)}
    state, _ = train_piece(state, batches, 2, recipe=recipe)
    large = [v for v in jax.tree.leaves(state) if v.size >= 1024]
    assert len(large) >= 3 * 12 if optimizer == "adamw" else len(large) >= 2 * 12
    assert all(v.addressable_shards[0].data.size == v.size // 8 for v in large)


@pytest.mark.slow
def test_no_device_is_sent_the_activations_of_all():
    settings = TrainSettings(epochs=1, batch_size=64, optimizer="adamw")
    one = np.zeros((1, 64), np.int32)
    sizes = GPTSettings(depth=1, width=128, num_heads=2, num_kv_heads=2, remat=True)
    own = program(GPT(1024, sizes), one, one, 1000, settings, meshes.make_mesh(4, 2), "sharded")
    text = own.step.lower(*own.args, **own.statics).compile().as_text()  # pyright: ignore[reportFunctionMemberAccess]
    found = re.findall(r"= \(?f32\[([\d,]*)\]\S* all-(?:gather|reduce)\(", text)
    sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in found]
    largest = max(v.size for v in jax.tree.leaves(own.args[0][0]))
    assert len(sizes) >= 12
    assert max(sizes) <= largest < 64 * 64 * 128
    assert "all-to-all" in text, "what is looked up moves, not the table"


def test_small_models_train_on_one_device_and_bad_batches_are_refused():
    mesh = meshes.make_mesh(1, 8)
    own, execution = np.zeros((1, 784), np.float32), Execution(mesh)
    small, large = MLP(10, (128, 64)), MLP(10, (9000, 9000))
    assert devices_for(small, own, RECIPE, execution, "replicated").mesh == meshes.single_mesh()
    assert devices_for(small, own, RECIPE, execution, "sharded").mesh is mesh
    assert devices_for(large, own, RECIPE, execution, "replicated").mesh is mesh
    with pytest.raises(ValueError, match=r"batch_size=20 can't be split over 8 devices: use 24"):
        pretrain(
            MLP(3, ()), np.zeros((40, 2), np.float32), np.zeros(40, int),
            dataclasses.replace(RECIPE, batch_size=20), execution=execution,
        )  # fmt: skip


def test_a_bank_of_models_over_a_mesh_is_one_of_models_that_train_together(digits, tmp_path):
    cut = lambda e, n: Examples(e.inputs[:n], e.labels[:n], e.ids[:n])  # noqa: E731
    recipe = TrainSettings(epochs=2, batch_size=16)
    setup = evaluation.Retraining(
        MLP(10, (8,)), cut(digits["train"], 64), cut(digits["query"], 20), recipe
    )
    settings = evaluation.BankSettings(num_subsets=2, num_seeds=1, models_at_once=2)
    split = setup._replace(mesh=meshes.make_mesh(4, 2))
    banks = []
    for own, folder in ((setup, "together"), (split, "split")):
        evaluation.fill_bank(own, settings, tmp_path / folder)
        banks.append(evaluation.read_bank(own, settings, tmp_path / folder))
    together, alone = banks
    assert together.origin == alone.origin
    np.testing.assert_allclose(alone.losses_MxExQ, together.losses_MxExQ, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(alone.margins_MxExQ, together.margins_MxExQ, rtol=1e-3, atol=1e-3)
