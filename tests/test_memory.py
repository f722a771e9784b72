"""Estimates of memory against hand counts and compilers, refusals, and memory that is gone."""

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stride_jax import design
from stride_jax import operators as ops
from stride_jax.cli import main as cli
from stride_jax.evaluation import BankSettings, bank_files
from stride_jax.models import ModelSettings, TrainSettings
from stride_jax.run import base_model, planning
from stride_jax.run.planning import programs, refusal, stages
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime import npz
from stride_jax.runtime.files import read_arrays, write_arrays
from stride_jax.runtime.memory import Limit, limits
from stride_jax.settings import ExactSettings, IndexSettings

R, O, K, N, Q, D, H = 16, 5, 64, 8192, 100, 24, 32  # noqa: E741
SETTINGS = RunSettings(
    model=ModelSettings("mlp", (H,)),
    train=TrainSettings(epochs=2, batch_size=128, optimizer="adamw"),
    num_checkpoints=3,
    index=IndexSettings(
        design=design.Design(K, 4, kind="clusters"), taps=("input",), kept=0,
        basis=ops.BasisSettings(rank=R - 1), sites=("logit",),
    ),
    bank=BankSettings(num_subsets=40, models_at_once=60),
    top_k=0,
)  # fmt: skip
EXTENT = planning.Extent(num_train=N, num_queries=Q, input_shape=(D,), num_classes=O)
RUN = ["run", "--config=configs/breast_cancer.py:runlocal"]


def changed(**sections: dict[str, Any]) -> RunSettings:
    own = {n: dataclasses.replace(getattr(SETTINGS, n), **v) for n, v in sections.items()}
    return dataclasses.replace(SETTINGS, **own)


def held(settings: RunSettings, stage: str, extent: planning.Extent = EXTENT) -> list[Any]:
    found = planning.needs(settings, extent, meshes.single_mesh(), planning.Names(id_bytes=40))
    return [one.held for one in found if one.stage == stage]


@pytest.mark.eight
def test_needs_are_those_counted_by_hand():
    params = 4 * (D * H + H + H * O + O)
    matrices, scores = 4 * K * R * O, 4 * Q * N
    step, checkpoints = held(SETTINGS, "model")
    # Adam's moments and counts; a batch's inputs and hidden units; rows and their order.
    batch = 128 * 4 * (D + H)
    assert step.devices == pytest.approx(3 * params + batch, abs=16)
    assert step.host == 2 * params + 2 * 4 * N
    assert (checkpoints.host, checkpoints.device) == (3 * params, 3 * params)
    (taken,) = held(SETTINGS, "measurements")
    assert (taken.host, taken.device) == (4 * Q * K, 3 * params + matrices)
    assert held(SETTINGS, "recovery")[1].host == 4 * Q * K + 2 * scores
    (table,) = held(SETTINGS, "attribution")
    assert table.host == 4 * Q * K + scores + Q * N * (24 + 40)
    assert held(SETTINGS, "evaluation")[0].host == 4 * Q * K + 4 * scores
    trained, answered = held(SETTINGS, "bank")
    one = 3 * params + 4 * 2 * (N // 2) + batch
    assert trained.devices - taken.devices == pytest.approx(60 * one, abs=60 * 16)
    assert answered.devices - taken.devices == 60 * (params + Q * 4 * H)
    split = changed(execution={"mesh": meshes.MeshSettings(parameters="sharded")})
    eight = planning.needs(split, EXTENT, meshes.make_mesh(1, 8))
    step = next(one.held for one in eight if one.stage == "model")
    assert step.device == pytest.approx((3 * params + 2 * params + batch) / 8, abs=16)
    (alone,) = (one.held.device for one in eight if one.stage == "bank")
    left = next(one.held.device for one in eight if one.stage == "measurements")
    assert alone - left == pytest.approx((3 * params + batch) / 8, abs=16), "no training set"
    (subsets,) = held(changed(index={"design": design.Design(K, 4, kind="hash")}), "recovery")
    assert (subsets.host, subsets.device) == (4 * Q * K, taken.device + 2 * 4 * N)
    listed = changed(execution={"memory": 2**20})
    assert not held(listed, "recovery"), "answers may be lists: nothing is sure"
    assert not held(changed(read={"exact": ExactSettings(shrink=0.5)}), "attribution")


@pytest.mark.parametrize(
    ("fisher", "site"),
    [("exact", "logit"), ("eigen", "logit"), ("kronecker", "logit"), ("coupled", "dense0+logit")],
)
def test_no_program_takes_less_than_it_is_said_to(fisher, site):
    settings = changed(
        index={"closed_form": ops.ClosedFormSettings(fisher=fisher), "sites": (site,),
               "design": design.Design(1024, 4, kind="clusters")},
        execution={"batch_size": 256},
    )  # fmt: skip
    scene = stages.scene_of(settings, EXTENT, meshes.single_mesh())
    peaks = [planning.cost(one).peak_bytes for one in programs._closed_form(scene, site)]
    before = 3 * 4 * (D * H + H + H * O + O)
    for moment, peak in zip(held(settings, "operators"), peaks, strict=True):
        assert peak / 4 < moment.device - before <= peak


def test_models_trained_together_take_no_less_than_they_are_said_to():
    scene, bank = stages.scene_of(SETTINGS, EXTENT, meshes.single_mesh()), SETTINGS.bank
    assert bank is not None
    peak = planning.cost(programs._bank(scene, bank, "bank")).peak_bytes
    index = held(SETTINGS, "measurements")[0].device
    own = [moment.device - index for moment in held(SETTINGS, "bank")]
    assert peak / 8 < max(own) <= peak


def test_joint_training_takes_no_less_than_it_is_said_to():
    index = {"design": design.Design(K, 4, kind="hash"), "fit": "joint"}
    settings = changed(index=index, execution={"memory": 2**20})
    scene = stages.scene_of(settings, EXTENT, meshes.single_mesh())
    (peak,) = [planning.cost(one).peak_bytes for one in programs._training(scene, "logit")]
    _, training = held(settings, "operators")
    # Activations that the program does not read are held beside it.
    own = training.device - 3 * 4 * (D * H + H + H * O + O) - 4 * N * D
    assert peak / 8 < own <= peak


@pytest.mark.parametrize(
    ("settings", "extent", "stage", "named"),
    [
        (changed(bank={"models_at_once": 4000, "num_subsets": 2000}), EXTENT, "bank",
         "bank.models_at_once"),
        (changed(index={"design": design.Design(8000, 4, kind="clusters"),
                        "basis": ops.BasisSettings(rank=300)}),
         dataclasses.replace(EXTENT, input_shape=(400,)), "operators", "index.design.num_subsets"),
        (changed(train={"batch_size": 8192}, model={"widths": (8000, 9)}), EXTENT, "model",
         "train.batch_size"),
        (SETTINGS, dataclasses.replace(EXTENT, num_queries=3000), "attribution", "top_k"),
    ],
)  # fmt: skip
def test_a_refusal_names_a_value_that_fits_and_is_about_the_largest(
    monkeypatch, settings, extent, stage, named
):
    mesh, room = meshes.single_mesh(), 200 * 2**20
    monkeypatch.setattr(refusal, "limits", lambda: [Limit("a box", 2 * room, room)])
    with pytest.raises(ValueError, match=f"the stage '{stage}' would hold .* a box") as caught:
        planning.refuse_too_large(settings, extent, mesh, [stage])
    told = str(caught.value)
    assert "\n" not in told
    value = int(told.partition(f"{named} to at most ")[2].split(",")[0])
    lowered, _ = refusal._changed(settings, extent, named, value)
    planning.refuse_too_large(lowered, extent, mesh, [stage])
    higher, _ = refusal._changed(settings, extent, named, value * 3 // 2)
    with pytest.raises(ValueError, match="would hold"):
        planning.refuse_too_large(higher, extent, mesh, [stage])
    planning.refuse_too_large(settings, extent, mesh, [])  # nothing is left to be done


def test_limits_are_those_of_the_process_and_of_every_group_around_it(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self/status").write_text("Name:\tx\nVmSize:\t 900 kB\nVmRSS:\t 100 kB\n")
    (proc / "meminfo").write_text("MemTotal: 8 kB\nSwapTotal: 50 kB\n")
    (proc / "self/cgroup").write_text("4:cpu,memory:/job/step\n2:cpu:/other\n0::/slice/unit\n")
    for path, limit in (
        ("memory/job/step/memory.limit_in_bytes", "700"),
        ("memory/job/memory.limit_in_bytes", "600"),
        ("slice/memory.max", "500"),
        ("slice/unit/memory.max", "max"),
        ("other/memory.max", "1"),
    ):
        (groups / path).parent.mkdir(parents=True, exist_ok=True)
        (groups / path).write_text(f"{limit}\n")
    found = limits(str(proc), str(groups))
    own = [one for one in found if "cgroup" in one.name]
    assert sorted(one.whole for one in own) == [500, 600, 700]
    assert {one.whole - one.left for one in own} == {50 * 1024}
    assert found[0].whole > 2**28
    assert found[0].whole - found[0].left == 50 * 1024


def test_a_run_too_large_ends_in_one_line_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refusal, "limits", lambda: [Limit("a box", 10**7, 10**6)])
    assert cli.main([*RUN, f"--workdir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("stride-jax run: the stage 'attribution' would hold 2.")
    assert "set top_k to at most " in told[-1]
    assert not (tmp_path / "run/model").exists()


def _numpy(*_: Any, **__: Any) -> Any:
    return np.zeros(2**57)


def _xla(*_: Any, **__: Any) -> Any:
    return jnp.zeros(2**44).block_until_ready()


@pytest.mark.parametrize("greedy", [_numpy, _xla])
def test_memory_that_is_gone_ends_in_one_line_that_names_the_stage(
    tmp_path, monkeypatch, capsys, greedy
):
    monkeypatch.setattr(base_model.models, "pretrain", greedy)
    assert cli.main([*RUN, f"--workdir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith(
        "stride-jax run: the stage 'model' ran out of memory: lower train.batch_size"
    )


def test_a_file_too_large_for_the_memory_is_not_taken_for_a_torn_one(tmp_path, monkeypatch):
    path = tmp_path / "models.npz"
    write_arrays(path, losses=np.zeros((2, 3)), margins=np.zeros((2, 3)), seconds=1.0)
    monkeypatch.setattr(npz, "limits", lambda: [Limit("a box", 1000, 50)])
    with pytest.raises(MemoryError, match=r"models.npz: it holds \d+ bytes .* may take 50 more"):
        read_arrays(path)
    with pytest.raises(MemoryError):
        bank_files._read_shard(path, (2, 3))
    assert path.exists(), "not set aside"
    monkeypatch.undo()
    assert bank_files._read_shard(path, (2, 3)) is not None


_READ = """
import resource, sys
from stride_jax.runtime.files import read_arrays
from stride_jax.runtime.memory import _kib
from stride_jax.runtime.tables import read_table
import pyarrow.parquet
space = _kib("/proc/self/status")["VmSize"] + 2**25
resource.setrlimit(resource.RLIMIT_AS, (space, space))
for read, path in ((read_arrays, sys.argv[1]), (read_table, sys.argv[2])):
    try:
        read(path)
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address spaces have limits on Linux")
def test_files_are_held_against_the_address_space(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_arrays(tmp_path / "large.npz", a=np.zeros(2**23))
    table = pa.table({"a": np.random.default_rng(0).random(2**23)})
    pq.write_table(table, tmp_path / "large.parquet")
    paths = [str(tmp_path / name) for name in ("large.npz", "large.parquet")]
    done = subprocess.run(
        [sys.executable, "-c", _READ, *paths], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{paths[0]}: it holds 671")
    assert second.startswith(f"{paths[1]}: ")


@pytest.mark.eight
def test_devices_of_one_process_are_added_up():
    settings = changed(index={"design": design.Design(K, 4, kind="hash")})
    one, eight = (
        planning.needs(settings, EXTENT, mesh)
        for mesh in (meshes.single_mesh(), meshes.arranged((1, 8), jax.devices()))
    )
    before = 3 * 4 * (D * H + H + H * O + O)
    matrices = 4 * 4 * K * R * O
    alone, shared = ([n.held for n in v if n.stage == "operators"][1] for v in (one, eight))
    assert alone.device == alone.devices
    assert alone.device - shared.device == pytest.approx(matrices * 7 / 8)
    fixed = alone.device - matrices - before
    assert shared.devices == pytest.approx(before + matrices + 8 * fixed)
