"""What the programs of the pass, the solution and measuring promise, read from their modules."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stride_jax import fitting, measure
from stride_jax import operators as ops
from stride_jax.adapters import from_model
from stride_jax.design import Design
from stride_jax.examples import Examples
from stride_jax.fitting import fit_programs
from stride_jax.frozen import resolve
from stride_jax.models import GPTSettings, LlamaSettings, ModelSettings, make_model, param_shapes
from stride_jax.models.attention import causal_attention, splash
from stride_jax.observed import activations_of, forward_all
from stride_jax.operators import passes
from stride_jax.operators.moments import Curvature
from stride_jax.resident import resident
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.settings import IndexSettings
from stride_jax.taps import only

VOCAB, K, T = 40, 8, 12
GPT = GPTSettings(depth=2, width=16, num_heads=2, num_kv_heads=1, sequence_len=T, dtype="bfloat16",
                  smear_channels=8, value_gate_channels=4)  # fmt: skip
LLAMA = LlamaSettings(depth=1, width=16, hidden=24, num_heads=2, num_kv_heads=1, sequence_len=T,
                      dtype="bfloat16", qk_norm=True, tied_head=True)  # fmt: skip
MODELS = {
    "gpt": ModelSettings("gpt", gpt=GPT),
    "llama": ModelSettings("llama", llama=LLAMA),
    "float32": ModelSettings("gpt", gpt=dataclasses.replace(GPT, depth=1, dtype="float32")),
}


@functools.cache
def scene(kind: str, site: str = "block0"):
    """A model of random weights, and a few sequences that it never read."""
    module, rng = make_model(MODELS[kind], VOCAB), np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (40, T + 1)).astype(np.int32)
    params = jax.tree.map(
        lambda v: 0.3 * rng.normal(size=v.shape).astype(np.float32),
        param_shapes(MODELS[kind], VOCAB),
    )
    settings = IndexSettings(
        design=Design(K, kind="hash", degree=3), basis=ops.BasisSettings(rank=4), taps=("block0",),
        sites=(site,), output_rank=6,
    )  # fmt: skip
    frozen = resolve(from_model(module), params, tokens[:1, :-1], settings)
    return frozen, Examples(tokens[:, :-1], tokens[:, 1:])


def over(shape):
    return meshes.arranged(shape, jax.devices())


def precisions(text):
    """Precisions of the products of a module, and their number."""
    found = re.findall(r"dot_general.*?precision = \[(\w+), \w+\]", text)
    assert len(found) == len(re.findall(r"= stablehlo.dot_general", text))
    return {kind: found.count(kind) for kind in set(found)}


def lowered(program):
    return program.step.lower(*program.args, **program.statics).as_text()


@pytest.mark.parametrize("site", ["block0", pytest.param("logit", marks=pytest.mark.slow)])
def test_our_products_keep_all_bits_and_the_models_its_own(site):
    frozen, examples = scene("gpt", site)
    widths, one = {"block0": 16}, examples.take([0])
    basis = ops.basis_shapes(frozen.settings.basis, widths)
    execution = Execution(over((2, 2)))
    programs = fit_programs(frozen, site, basis, one, len(examples), execution)
    source, own = frozen.source(one, training=True), frozen.sites[site]
    alone = jax.jit(source.forward).lower(source.params, own, source.data).as_text()
    (models_own,) = precisions(alone).values()
    assert precisions(alone) == {"DEFAULT": models_own}
    found = precisions(lowered(programs["pass"]))
    assert found["DEFAULT"] == models_own
    assert set(found) == {"DEFAULT", "HIGHEST"}
    solved = lowered(programs["solve"])
    assert set(precisions(solved)) == {"HIGHEST"}
    assert "bf16" not in solved
    matrices = jax.ShapeDtypeStruct((K, basis.rank, own.width), jnp.float32)
    operators = ops.Operators(basis, matrices, jax.ShapeDtypeStruct((K,), jnp.float32))
    for form in ("first_order", "exact"):
        settings = measure.MeasureSettings(form=form)
        program = measure.program(own, operators, frozen.source(one), 8, settings, execution)
        found = precisions(lowered(program))
        assert set(found) == {"DEFAULT", "HIGHEST"}


def test_a_users_precision_is_the_models():
    frozen, examples = scene("gpt")
    one = examples.take([0])
    with jax.default_matmul_precision("float32"):
        tapped = from_model(make_model(MODELS["gpt"], VOCAB))
        again = resolve(tapped, frozen.params, one.inputs, frozen.settings)
    source = again.source(one)
    text = jax.jit(source.forward).lower(source.params, again.sites["block0"], source.data)
    assert set(precisions(text.as_text())) == {"HIGHEST"}


@pytest.mark.parametrize("kind", [pytest.param("gpt", marks=pytest.mark.slow), "llama"])
def test_parameters_rounded_once_give_the_same_bits(kind):
    frozen, examples = scene(kind)
    source, site = frozen.source(examples, training=True), frozen.sites["block0"]
    held = resident(source, over((2, 2)), 2**30)
    kinds = {v.dtype.name for v in jax.tree.leaves(held.params)}
    assert kinds == {"bfloat16"}
    batch = jax.tree.map(jnp.asarray, frozen.source(examples.take(slice(3))).data)
    # One operation after the other: within a program, XLA on a CPU may leave roundings out.
    with jax.disable_jit():
        want, got = (source.forward(params, site, batch) for params in (source.params, held.params))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_parameters_stay_split_where_a_copy_takes_too_much():
    frozen, examples = scene("gpt")
    mesh = over((2, 2))
    split = meshes.sharded_parameters(frozen.params, mesh)
    source = frozen.source(examples)
    source = source._replace(params=meshes.place(source.params, split))
    nbytes = sum(2 * v.size for v in jax.tree.leaves(source.params))
    whole, parts = (resident(source, mesh, 2 * nbytes - n).params for n in (0, 1))
    assert all(v.sharding.is_fully_replicated for v in jax.tree.leaves(whole))
    assert jax.tree.map(lambda v: v.sharding, parts) == split
    assert {v.dtype.name for v in jax.tree.leaves((whole, parts))} == {"bfloat16"}
    shapes = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding), source.params
    )
    planned = resident(source._replace(params=shapes), mesh, 2 * nbytes - 1).params
    assert jax.tree.map(lambda v: (v.dtype, v.sharding), planned) == jax.tree.map(
        lambda v: (v.dtype, v.sharding), parts
    )


@pytest.mark.parametrize(
    ("site", "shape"), [pytest.param("block0", (2, 2), marks=pytest.mark.slow), ("logit", (1, 4))]
)
def test_a_pass_over_devices_is_that_of_one(site, shape):
    """Rows of devices share products here: `R O < T (R + O)`."""
    frozen, examples = scene("float32", site)
    rng = np.random.default_rng(2)
    subsets = np.array([rng.choice(K, 3, replace=False) for _ in range(len(examples))])
    basis = ops.fit_basis({"block0": rng.normal(size=(50, 1, 16)).astype(np.float32)},
                          frozen.settings.basis)  # fmt: skip
    labels = ops.Labels(rng.integers(-1, 3, len(examples)).astype(np.int32), 3)

    def made(mesh):
        return ops.accumulate(
            frozen.settings.design, subsets, frozen.sites[site], basis,
            frozen.source(examples, training=True), Curvature("kronecker"),
            Execution(mesh, batch_size=16), ops.Store(20), labels,
        )  # fmt: skip

    one, many = made(meshes.single_mesh()), made(over(shape))
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    for name in ("features_RxR", "outputs_OxO", "gradients_KxRxO", "sizes_K", "groups_GxRxO"):
        want, got = (np.asarray(getattr(v.moments, name)[0]) for v in (one, many))
        np.testing.assert_allclose(got, want, err_msg=name, **tolerance)
    np.testing.assert_allclose(many.norm_N, one.norm_N, **tolerance)
    np.testing.assert_array_equal(many.kept.row_H, one.kept.row_H)


@pytest.mark.parametrize(("length", "window"), [(37, 5), (12, 0)])
def test_attention_in_blocks_is_the_dense_one(length, window):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, h, 8)).astype(np.float32) for h in (4, 2, 2))

    @functools.partial(jax.jit, static_argnums=3)
    def both(q, k, v, implementation):
        run = lambda *x: causal_attention(*x, window, implementation)  # noqa: E731
        out, pull = jax.vjp(run, q, k, v)
        return out, pull(jnp.cos(out))

    blocks, dense = both(q, k, v, "auto"), both(q, k, v, "einsum")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), blocks, dense)


def test_attention_in_blocks_costs_its_window():
    shape = jax.ShapeDtypeStruct((1, 2048, 1, 64), jnp.float32)
    flops = [
        jax.jit(functools.partial(causal_attention, window=128, implementation=kind))
        .lower(shape, shape, shape).compile().cost_analysis()["flops"]
        for kind in ("auto", "einsum")
    ]  # fmt: skip
    assert flops[0] < flops[1] / 6  # 256 keys per query in place of 2,048


@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.slow), 100])
def test_the_tpus_kernel_is_the_dense_attention(window):
    """Emulated, and divided among devices as the library's programs ask for it."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 256, h, 128)).astype(np.float32) for h in (2, 1, 1))
    mesh = over((2, 1))

    @jax.jit
    def kernel(q, k, v):
        with meshes.traced_over(mesh):
            out, pull = jax.vjp(lambda *x: splash(*x, window, interpret=True), q, k, v)
            return out, pull(jnp.cos(out))

    @jax.jit
    def dense(q, k, v):
        run = lambda *x: causal_attention(*x, window, "einsum").reshape(q.shape)  # noqa: E731
        out, pull = jax.vjp(run, q, k, v)
        return out, pull(jnp.cos(out))

    got = kernel(*meshes.place((q, k, v), meshes.over_examples(mesh)))
    assert got[0].sharding.spec[0] == (meshes.DATA, meshes.SUBSET)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, dense(q, k, v))


def test_a_samples_activations_need_no_logits():
    frozen, examples = scene("float32")
    few = examples.take(slice(11))
    read = only(frozen.tapped, frozen.settings.taps)
    alone, many = (
        activations_of(read, frozen.params, few, Execution(mesh, memory=memory))["block0"]
        for mesh, memory in ((meshes.single_mesh(), 2**30), (over((2, 2)), 1))
    )
    want = forward_all(read, frozen.params, few).activations["block0"]
    np.testing.assert_allclose(alone, want, atol=1e-5)
    np.testing.assert_allclose(many, want, atol=1e-5)
    # Without the head's product.
    dots = [
        len(
            re.findall(
                r"\bdot\(", jax.jit(run).lower(frozen.params, few.inputs).compile().as_text()
            )
        )
        for run in (read.forward, lambda *x: read.forward(*x)[1])
    ]
    assert dots[1] < dots[0]


def test_tables_of_batches_are_those_of_the_membership():
    rng = np.random.default_rng(0)
    subsets = np.array([rng.choice(K, 3, replace=False) for _ in range(21)])
    values, mesh = rng.normal(size=21), over((2, 2))
    total, sizes = np.zeros(K), np.zeros(K)
    shapes = set()
    for first, (rows, sizes_K) in zip((8, 16), passes._tables(subsets, 8, K, 8, mesh), strict=True):
        own = np.zeros((2, 5))  # four examples of each row of devices, and one of zeros
        some = values[first : first + 8]
        own[:, :4] = np.pad(some, (0, 8 - len(some))).reshape(2, 4)
        total += sum(own[w][rows[w]].sum(axis=0) for w in range(2))
        sizes += sizes_K
        shapes.add(rows.shape)
    want = [values[8:][(subsets[8:] == k).any(axis=1)].sum() for k in range(K)]
    np.testing.assert_allclose(total, want)
    np.testing.assert_array_equal(sizes, np.bincount(subsets[8:].ravel(), minlength=K))
    assert len(shapes) == 1


def test_joint_training_that_memory_cannot_hold_is_refused(monkeypatch):
    frozen, examples = scene("gpt")
    frozen = dataclasses.replace(frozen, settings=dataclasses.replace(frozen.settings, fit="joint"))
    subsets = np.zeros((len(examples), 3), int)
    monkeypatch.setattr(fitting, "memory_bytes", lambda: 2**17)
    with pytest.raises(ValueError, match=r"all 40 examples, 0\.0 GiB.*at most \d+ examples"):
        fitting.fit_operators(frozen, examples, subsets)
