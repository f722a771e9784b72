"""Plans against hand counts, and the layout and traffic of every stage's compiled program."""

import dataclasses
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import mnist5k, nanochat
from stride_jax import design, fitting, measure
from stride_jax import operators as ops
from stride_jax.cli import plan_report as program
from stride_jax.cli.main import main
from stride_jax.evaluation import BankSettings
from stride_jax.frozen import freeze
from stride_jax.models import ModelSettings, TrainSettings
from stride_jax.run import planning
from stride_jax.run.settings import ExecutionSettings, RunSettings, run_settings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.settings import IndexSettings, ReadSettings

GOLDEN = pathlib.Path(__file__).parent / "golden"

pytestmark = pytest.mark.eight

SETTINGS = RunSettings(
    model=ModelSettings("mlp", (32, 24)),
    train=TrainSettings(epochs=1),
    index=IndexSettings(
        design=design.Design(64, 4, kind="hash"),
        taps=("input",),
        sites=("logit",),
        basis=ops.BasisSettings(rank=15),
    ),
    read=ReadSettings(measure=measure.MeasureSettings("first_order")),
    bank=BankSettings(),
    execution=ExecutionSettings(batch_size=4096),
)
EXTENT = planning.Extent(num_train=8192, num_queries=64, input_shape=(16,), num_classes=5)


def test_flops_are_those_of_the_textbook():
    a, b = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 6), (6, 4)))
    assert planning.count_flops(jnp.matmul, a, b) == 2 * 8 * 6 * 4
    looped = lambda a, b: jax.lax.scan(lambda c, _: (c + a @ b, None), a @ b, None, length=9)[0]  # noqa: E731
    assert planning.count_flops(looped, a, b) == 10 * 2 * 8 * 6 * 4 + 9 * 8 * 4
    mesh = meshes.make_mesh(8, 1)
    halves = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert planning.count_flops(jax.jit(halves), a, b) == 2 * 8 * 6 * 4
    image, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 9, 9, 3), (3, 3, 3, 7)))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert planning.count_flops(convolve, image, kernel) == 2 * (2 * 9 * 9 * 7) * (3 * 3 * 3)


def test_work_of_a_compiled_program_is_that_of_the_textbook():
    mesh = meshes.make_mesh(4, 2)
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((24, 16), (16, 16)))

    def turns(x, w):
        # Rows meet over `data`; over `subset` each device is alone with what it has.
        return jax.lax.fori_loop(0, 7, lambda _, y: jax.lax.psum(y @ w, "data") / 4, x)

    own = jax.shard_map(turns, mesh=mesh, in_specs=(P("data"), P()), out_specs=P(), check_vma=False)
    text = jax.jit(own).lower(x, w).compile().as_text()
    work = planning.work_of(text)
    assert work.sent == {"all-reduce": 7 * 6 * 16 * 4}
    assert work.flops == pytest.approx(7 * (2 * 6 * 16 * 16 + 6 * 16), rel=0.02)
    assert work.calls == {"all-reduce": 7}
    untold = planning.work_of(text.replace('"known_trip_count":{"n":"7"}', ""))
    assert untold == work, "turns that are not written are counted"
    moving = re.sub(r"(%[\w.\-]+ = s32\[\] )constant\(7\)", r"\1rng-bit-generator()", text)
    moving = moving.replace('"known_trip_count":{"n":"7"}', "")
    assert planning.work_of(moving).flops < work.flops / 6, "turns that nobody can know"

    def plain(a, b, flag):
        solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), b)
        picked = jax.lax.cond(flag, lambda v: v @ v.T, lambda v: (v @ v.T) @ (v @ v.T), b)
        return solved, jnp.linalg.eigh(a)[0], picked

    a, b = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((90, 90), (90, 40)))
    flag = jax.ShapeDtypeStruct((), jnp.bool)
    # The costlier branch: its two products v vᵀ are one.
    expected = 90**3 / 3 + 2 * 90**2 * 40 + 9 * 90**3 + 2 * 90**2 * 40 + 2 * 90**3
    found = planning.work_of(jax.jit(plain).lower(a, b, flag).compile().as_text()).flops
    assert found == pytest.approx(expected, rel=0.03)


def test_a_module_of_a_tpu_is_read_as_the_program_that_was_written():
    """Seven turns of a product, its sum over two devices, a gathering, and a batch of products."""
    work = planning.work_of((GOLDEN / "tpu_loop.hlo").read_text())
    assert work.calls == {"all-gather": 7, "all-reduce": 7}
    assert work.sent == {"all-gather": 7 * 4 * 2 * 64 * 2, "all-reduce": 7 * 256 * 256 * 4}
    assert work.gather == 4 * 2 * 64 * 2
    products = 7 * (2 * 256**3 + 2 * 64)  # of the batch one number is read, and only that is made
    assert products < work.flops < products + 7 * 4 * 256**2
    body = 512 + 2397 + 1833 + 1828 + 1826 + 1961 + 2067 + 2413
    assert work.cycles == 7 * body + 2930 + 2122, "as the compiler wrote them"
    assert work.halved == 2, "its products read bfloat16 by default"


def test_attention_by_a_kernel_is_counted_by_its_blocks():
    """Two heads of 2,048 tokens and 128 channels; a window of 512: five blocks of 128 per row."""
    given = "%c.1, %c.2, %q.1, %k.1, %v.1"
    text = f"""HloModule one
ENTRY %main.1 (q.1: bf16[2,2048,128], k.1: bf16[2,2048,128], v.1: bf16[2,2048,128]) -> bf16[] {{
  %c.1 = s8[1,16,5]{{2,1,0:T(8,128)(4,1)}} constant({{...}})
  %c.2 = s8[1,16,5]{{2,1,0:T(8,128)(4,1)}} constant({{...}})
  %q.1 = bf16[2,2048,128]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %k.1 = bf16[2,2048,128]{{2,1,0:T(8,128)(2,1)}} parameter(1)
  %v.1 = bf16[2,2048,128]{{2,1,0:T(8,128)(2,1)}} parameter(2)
  %splash_mha_fwd_no_residuals.1 = (f32[128,128]{{1,0:T(8,128)}}, bf16[2,2048,128]{{2,1,0:T(8,128)(2,1)}}) custom-call({given}), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 128, \\"block_kv\\": 128, \\"block_q_dq\\": 64, \\"block_kv_dq\\": 128}}"
}}}}, backend_config={{"custom_call_config":{{"body":""}}}}
  ROOT %out.1 = bf16[2,2048,128]{{2,1,0:T(8,128)(2,1)}} get-tuple-element(%splash_mha_fwd_no_residuals.1), index=1
}}
"""  # noqa: E501
    work = planning.work_of(text)
    assert work.kernels == work.flops == 2 * 16 * 5 * 2 * (2 * 128**3)
    backward = text.replace("splash_mha_fwd_no_residuals", "splash_mha_dq")
    assert planning.work_of(backward).kernels == 2 * 16 * 5 * 3 * (2 * 64 * 128 * 128)
    assert work.cycles == 0
    chip = planning.CHIPS["v5e"]
    assert chip.cycles(7.0, work.kernels) == pytest.approx(7 + work.kernels / 131072, rel=0.01)


def test_bytes_of_a_program_without_loops_are_those_that_xla_counts():
    def one(a, b):
        return jax.nn.softmax(a @ b)[:8].sum(axis=0) + jnp.tanh(a[3, :5]).sum()

    a, b = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((300, 200), (200, 50)))
    compiled = jax.jit(one).lower(a, b).compile()
    counted = compiled.cost_analysis()
    work = planning.work_of(compiled.as_text())
    assert work.traffic == pytest.approx(counted["bytes accessed"], rel=0.05)
    assert work.flops == pytest.approx(counted["flops"], rel=0.05)


@pytest.fixture(scope="module")
def plans():
    by_devices = {}
    for shape in ((1, 1), (1, 4), (4, 1), (2, 4)):
        stages = planning.plan(SETTINGS, EXTENT, meshes.arranged(shape, jax.devices()))
        by_devices[shape] = {stage.name.partition(",")[0]: stage for stage in stages}
    return by_devices


def test_work_of_a_device_falls_with_devices(plans):
    for shape, stages in plans.items():
        for name in ("pass", "measure", "recovery"):
            one, own = plans[1, 1][name], stages[name]
            share = own.calls * own.device_flops * shape[0] * shape[1]
            # A row of devices along `subset` makes the same outer products, each for its subsets.
            outer = 2 * 8192 * 16 * 5 * (shape[1] - 1) if name == "pass" else 0
            assert share <= 1.1 * one.calls * one.device_flops + outer, (shape, name)
    one, split = plans[1, 1]["pass"], plans[1, 4]["pass"]
    sums = 2 * 4 * 64 * 16 * 5  # value and compensation of every subset's sum
    assert one.argument_bytes - split.argument_bytes > 0.7 * sums
    more, one = plans[2, 4]["pass"], plans[1, 1]["pass"]
    outer = more.calls * more.flops - one.calls * one.flops
    said = "the outer products of a row, and their squares' sums"
    assert outer == pytest.approx(3 * 8192 * 4 * 16 * 5, rel=0.02), said
    # What the mathematics needs, by the jaxpr, and what the compiled program does.
    for name in ("pass", "solve", "measure", "recovery", "bank"):
        stage = plans[1, 1][name]
        assert stage.device_flops == pytest.approx(stage.flops, rel=0.05), name


def test_a_plan_of_clusters_assigns_examples_and_recovers_nothing(plans):
    own = dataclasses.replace(SETTINGS.index.design, kind="auto")
    settings = dataclasses.replace(SETTINGS, index=dataclasses.replace(SETTINGS.index, design=own))
    for shape in ((1, 1), (2, 4)):
        stages = planning.plan(settings, EXTENT, meshes.arranged(shape, jax.devices()))
        found = {stage.name.partition(",")[0]: stage for stage in stages}
        before = {"pre-training", "loading the model", "basis"}
        assert set(found) == {*before, "pass", "solve", "measure", "bank"}
        assert found["solve"].flops == plans[shape]["solve"].flops
        one, other = found["pass"], plans[shape]["pass"]
        more = one.calls * one.flops - other.calls * other.flops
        said = "each example's gradient is compared with every centroid, on one device"
        assert more == pytest.approx(2 * 8192 * 64 * 16 * 5, rel=0.05), said
        devices = shape[0] * shape[1]
        assert one.device_flops * devices == pytest.approx(one.flops, rel=0.05), said
        # Features, errors, and a few numbers of each example of the row, once more if it is kept.
        assert one.communicated.get("all-gather", 0) <= 2 * 4096 * (16 + 5 + 3) * 4


@pytest.mark.parametrize("learned", [0.0, 1e-4])
def test_a_plan_of_joint_training_is_of_the_step_that_runs(trained, learned):
    joint = ops.JointSettings(
        steps=3, stability_batch=32, basis_learning_rate=learned, linearity=float(learned > 0)
    )
    how = dataclasses.replace(SETTINGS.index, fit="joint", joint=joint)
    settings = dataclasses.replace(SETTINGS, index=how, model=ModelSettings("mlp", (24, 16)))
    extent = planning.Extent(len(trained.train), 40, trained.train.inputs.shape[1:], 10)
    by_devices = {
        shape: next(
            planning.cost(stage)
            for stage in planning.planned_stages(
                settings, extent, meshes.arranged(shape, jax.devices())
            )
            if stage.name.startswith("training")
        )
        for shape in ((1, 1), (1, 8))
    }
    one, split = by_devices.values()
    assert one.name == "training, logit"
    assert one.calls == 3
    # Fidelity of every member under its subsets, and of the batch under all: b a and the softmax.
    least = 3 * 2 * (400 * 4 + 32 * 64) * 16 * 10
    assert least < one.device_flops < 4 * least
    if not learned:  # every device makes features that are learned, and the sketch's ridge, itself
        assert 8 * split.device_flops < 1.1 * one.device_flops
    assert planning.index_bytes(settings, extent, meshes.single_mesh()) == 4 * 64 * (16 * 10 + 1)
    why = program.verdict([dataclasses.replace(one, temporary_bytes=2**40)], "v5e")
    assert why is not None
    assert "index.fit='closed_form'" in why


def test_stages_before_the_pass_hold_what_they_must(plans):
    for shape, stages in plans.items():
        devices, params = shape[0] * shape[1], 4 * ((16 + 1) * 32 + (32 + 1) * 24 + (24 + 1) * 5)
        train, loaded, basis = (
            stages[name] for name in ("pre-training", "loading the model", "basis")
        )
        assert loaded.argument_bytes == 5 * params, "as many checkpoints as are stored"
        assert loaded.host_bytes >= 4 * 32 * 24, "its largest array"
        assert train.argument_bytes >= 2 * params, "parameters and momentum"
        assert train.calls == 8192 // 64
        assert basis.devices == devices
        assert basis.calls * basis.rows >= 8192, "all of a training set this small"
        assert basis.output_bytes >= 4 * basis.rows * 16 / devices, "its taps"
        assert basis.peak_bytes < 2**20, "and no more"
        assert stages["pass"].host_bytes >= 12 * 8192, "three numbers of every example"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the extra tpu is there")
def test_a_topology_without_its_compiler_names_the_extra(capsys):
    assert main(["plan", "--config=configs/mnist5k.py", "--topology=v5e:4x4"]) == 2
    assert 'pip install "stride-jax[tpu]"' in capsys.readouterr().err


def test_a_mesh_of_any_shape_lies_on_a_torus():
    """jax.make_mesh cuts no axis of a 4 x 4 x 4: a run on v5p-64 with 8 x 8 would end there."""

    class Chip:
        platform, device_kind, core_on_chip, slice_index = "tpu", "TPU v5", 0, 0

        def __init__(self, i: int) -> None:
            self.id, self.process_index = i, i // 4
            self.coords = (i % 4, i // 4 % 4, i // 16)

    mesh = meshes.make_mesh(-1, 8, [Chip(i) for i in range(64)])
    assert mesh.shape == {"data": 8, "subset": 8}


def test_nothing_of_size_n_or_of_the_index_travels(plans):
    b_and_e, rank, outputs, batch = 4096 * (16 + 5) * 4, 16, 5, 64
    for shape, stages in plans.items():
        sent = {name: stage.communicated for name, stage in stages.items()}
        if shape == (1, 1):
            assert not any(sent.values())
        assert not sent["recovery"]
        assert not sent["bank"]
        # Features and errors of a row's batch go to its devices, once more those that may be kept;
        # gradients of queries too.
        assert sent["pass"].get("all-gather", 0) <= 2 * b_and_e + 4 * 4096 * 4
        assert sent["measure"].get("all-gather", 0) <= batch * rank * outputs * 4
        # Blocks of the factor, five outputs by five on and below the diagonal, of 16 features each.
        factor = 15 * 16**2 * 4 if shape != (1, 1) else 0
        assert sum(sent["solve"].values()) <= factor + 64


def test_every_stage_leaves_its_product_where_it_belongs(trained):
    mesh = meshes.make_mesh(2, 4)
    settings, execution = dataclasses.replace(SETTINGS.index, taps=("hidden1",)), Execution(mesh)
    subsets = design.membership(settings.design, trained.train.ids)
    frozen = freeze(trained.tapped, trained.params, trained.train, settings, execution)
    fitted = fitting.fit_operators(frozen, trained.train, subsets, execution)
    operators, moments = fitted.operators, fitted.passed.moments
    split = meshes.over_subsets(mesh)
    assert moments["logit"].gradients_KxRxO[0].sharding.is_equivalent_to(split, 3)
    assert operators["logit"].a_KxRxO.sharding.is_equivalent_to(split, 3)
    source = frozen.source(trained.train)
    batch = meshes.place(source.data, meshes.over_examples(mesh), np.arange(16))
    params, site = meshes.everywhere((trained.params, frozen.sites["logit"]), mesh)
    placed = jax.tree.map(meshes.place, operators["logit"], ops.shardings(operators["logit"], mesh))
    step = measure.program(site, placed, source, 16, SETTINGS.read.measure, execution)
    y_BxK = step(params, site, placed, batch)
    wanted = jax.NamedSharding(mesh, P("data", "subset"))
    assert y_BxK.sharding.is_equivalent_to(wanted, 2)
    sharded = meshes.place(trained.params, meshes.sharded_parameters(trained.params, mesh))
    kernels = [v for v in jax.tree.leaves(sharded) if v.shape == (64, 24)]
    assert kernels[0].addressable_shards[0].data.shape == (8, 24)
    split = freeze(trained.tapped, sharded, trained.train, settings, execution)
    again = fitting.fit_operators(split, trained.train, subsets, execution).operators
    a, b = (np.asarray(o["logit"].a_KxRxO) for o in (again, operators))
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 1e-4


def test_bad_plans_say_what_is_wrong(plans):
    with pytest.raises(ValueError, match=r"--mesh='8': give devices along data and along subset"):
        program.parse_mesh("8")
    with pytest.raises(ValueError, match=r"lacks num_train, num_queries"):
        planning.extent_of({"plan": {"input_shape": (3,), "num_classes": 2}})
    stages = [dataclasses.replace(plans[1, 1]["pass"], temporary_bytes=2**40)]
    why = program.verdict(stages, "v5e")
    assert why is not None
    assert "does not fit v5e: 'pass, logit' takes 1024.00 GiB" in why
    assert "lower execution.memory" in why
    assert program.verdict(list(plans[1, 1].values()), "v5e") is None
    wide = [dataclasses.replace(plans[2, 4]["pass"], largest_gather=2**29)]
    why = program.verdict(wide, "v5e", 2**28)
    assert why is not None
    assert "'pass, logit' gathers 512.00 MiB into one array on every device" in why
    with pytest.raises(ValueError, match=r"topology='v5:4': give a chip and its grid, such as v5e"):
        planning.devices_of("v5:4")
    for config in (mnist5k.get_config(), nanochat.get_config("d12"), nanochat.get_config("d24")):
        assert planning.extent_of(config.to_dict()).num_train > 0
    assert "recovery, a round" in program.table(list(plans[1, 1].values()), 0.4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["solve", "measure", "recovery", "basis", "pass"])
def test_d12_compiles_for_real_chips(name):
    """Every stage of d12 on four v5e, as `plan --topology=v5e:2x2` has it."""
    values = nanochat.get_config("d12").to_dict()
    values["execution"]["memory"] = 2**28
    mesh = meshes.make_mesh(1, 4, planning.devices_of("v5e:2x2"))
    stages = planning.planned_stages(run_settings(values), planning.extent_of(values), mesh)
    stage = planning.cost(next(one for one in stages if one.name.startswith(name)))
    assert stage.peak_bytes < 16 * 2**30
    assert stage.cycles > 0
    assert stage.device_flops > 0
    if name in ("pass", "measure"):
        assert sum(stage.collectives.values()) > 0
        assert 0 < stage.largest_gather < 2**28
        # Matrix units at their peak at most, and more than a hundredth of it.
        assert 327.68 < stage.device_flops / stage.cycles < 131072 * 1.05
    if name == "solve":
        assert stage.halved_products == 0
