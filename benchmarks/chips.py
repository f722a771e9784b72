"""Plans of the published language models for real chips: memory, collectives, cycles by stage.

    python -m benchmarks.chips
    python -m benchmarks.chips --depths=d24 --topologies=v5e:16x16 --record
    python -m benchmarks.chips --depths=d24 --topologies=v5e:16x16 --stages=pass --before
    python -m benchmarks.chips --depths=d24 --topologies=v5e:16x16 --columns

Needs the extra `tpu`. Compiles every stage of every depth for every topology, one after the other,
minutes each; a program that was compiled before is read from `--workdir`, so that the command may
be stopped and started again. `h100:8` stands for eight devices of the CPU. What is there so far is
written to `docs/results/plan-chips.json`; `--record` adds the figures asked for to
`docs/results/pod.json`, `--before` those of a program before a change.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks.house import ROOT, Row, command, commit_of, record, this_command
from benchmarks.imports import POD
from benchmarks.program import listed
from configs import nanochat
from stride_jax import recovery
from stride_jax.cli.doors import Parser
from stride_jax.cli.plan_report import chip_table, table
from stride_jax.run.planning import (
    CHIPS,
    Stage,
    StageCost,
    cost_of,
    devices_of,
    extent_of,
    gib,
    lowered,
    planned_stages,
)
from stride_jax.run.settings import run_settings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import fingerprint, read_json, write_json

PLANS = ROOT / "docs/results/plan-chips.json"
_H100 = "h100:8"
_ASKED, _GATHER = 15.0, 256.0
"""GiB per chip, and MiB of the largest array that is gathered."""


def stages_of(depth: str, topology: str) -> tuple[Any, Iterator[Stage]]:
    """The mesh that a run would use there, and its stages."""
    values = nanochat.get_config(depth).to_dict()
    if topology == _H100:  # a sequence at a time on each device, as everywhere
        values["train"]["accumulation"] = values["train"]["batch_size"] // 8
    settings = run_settings(values)
    if topology == _H100:
        mesh = meshes.arranged((1, 8), jax.devices())
    else:
        k = settings.index.design.num_subsets
        mesh = meshes.mesh_for(k, settings.execution.mesh, devices_of(topology))
    return mesh, planned_stages(settings, extent_of(values), mesh)


def costs(folder: pathlib.Path, topology: str, stages: Iterator[Stage]) -> Iterator[StageCost]:
    """Costs of each stage; what was compiled before is read."""
    for stage in stages:
        program = lowered(stage)
        if program is None:
            yield cost_of(stage, None)
            continue
        key = fingerprint(topology, program.as_text(), jax.__version__, stage.program.calls)  # pyright: ignore[reportOptionalMemberAccess]
        path = folder / f"{stage.name.partition(',')[0].replace(' ', '-')}-{key}.json"
        if not path.exists():
            print(f"compiling {stage.name} for {topology}", flush=True)
            write_json(path, dataclasses.asdict(cost_of(stage, program)))
        yield dataclasses.replace(StageCost(**read_json(path)), host_bytes=stage.host_bytes)


def figures(depth: str, topology: str, stages: Sequence[StageCost], suffix: str) -> list[Row]:
    """Rows of what is asked for."""
    where, rows = f"{depth} on {topology}", []
    asked = None if suffix else _ASKED
    for s in stages:
        peak = s.peak_bytes / 2**30
        rows.append(Row(f"{where}, {s.name}: GiB per chip{suffix}", peak, "lower", asked=asked))
        gathered, most = s.largest_gather / 2**20, None if suffix else _GATHER
        name = f"{where}, {s.name}: largest all-gather, MiB{suffix}"
        rows.append(Row(name, gathered, "lower", asked=most))
    for s in stages:
        kind = s.name.partition(",")[0]
        if kind == "solve":
            name = f"{where}, solve: matrix products that read 16 bits{suffix}"
            rows.append(Row(name, s.halved_products, "lower", asked=None if suffix else 0.0))
        if kind != "pass":
            continue
        calls, each = sum(s.collectives.values()), s.rows_each
        rows.append(
            Row(f"{where}, pass: collectives per sequence of a chip{suffix}", calls / each, "lower")
        )
        rows.append(Row(f"{where}, pass: collectives per call{suffix}", calls, "lower"))
        if s.cycles:
            name = f"{where}, pass: million cycles per sequence of a chip{suffix}"
            cycles = CHIPS[topology.partition(":")[0]].cycles(s.cycles, s.kernel_flops)
            rows.append(Row(name, cycles / each / 1e6, "lower"))
    return rows


def columns(depth: str, topology: str) -> list[Row]:
    """Cycles of a round of recovery by both ways to multiply with the columns."""
    settings = run_settings(nanochat.get_config(depth).to_dict())
    extent = extent_of(nanochat.get_config(depth).to_dict())
    mesh, rows = meshes.arranged((1, 1), devices_of(topology)[:1]), []
    for one_hot, name in ((False, "gathered"), (True, "one-hot")):
        program = recovery.program(
            extent.num_train, settings.index.design, 2, settings.read.lasso,
            weighted=settings.read.prior > 0, execution=Execution(mesh), one_hot=one_hot,
        )  # fmt: skip
        stage = Stage(f"recovery, {name}", program)
        own = cost_of(stage, lowered(stage))
        what = f"{depth} on {topology}, a round of recovery for two queries, columns {name}"
        rows += [
            Row(f"{what}: million cycles", own.cycles / 1e6, "lower"),
            Row(f"{what}: GiB", own.peak_bytes / 2**30, "lower", asked=_ASKED),
        ]
    return rows


def main(words: Sequence[str]) -> int:
    """Compile, write what is there, print."""
    parser = Parser("chips", __doc__)
    parser.prog = "python -m benchmarks.chips"
    parser.usage = f"{parser.prog} --flag=value …"
    parser.flag("depths", "Models.", type=listed(str), default=("d24", "d12", "d16", "d20"))
    parser.flag("topologies", "Chips.", type=listed(str),
                default=("v5e:16x16", "v5p:4x4x4", "v6e:16x16", _H100))  # fmt: skip
    parser.flag("stages", "Of these names alone; nothing but rows of them is written.",
                type=listed(str), default=())  # fmt: skip
    parser.flag("workdir", "Folder of what was compiled.", default="runs/chips")
    parser.switch("record", "Write the figures asked for.")
    parser.switch("before", "Write them under names that end in 'before'.")
    parser.switch("columns", "Nothing but recovery, by both ways to multiply with the columns.")
    given, _ = parser.read(words)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    for depth in given.depths:
        for topology in given.topologies:
            if given.columns:
                rows = columns(depth, topology)
                print("\n".join(f"{row.name}: {row.value:.3g}" for row in rows))
                record(rows, path=POD)
                continue
            mesh, stages = stages_of(depth, topology)
            if given.stages:
                stages = (one for one in stages if one.name.startswith(given.stages))
            own = list(costs(pathlib.Path(given.workdir) / depth, topology, stages))
            if not given.stages:
                _write(depth, topology, dict(mesh.shape), own)
            chip = topology.partition(":")[0]
            print(f"{depth} on {topology}, {math.prod(mesh.shape.values())} devices")
            print(chip_table(own, chip) if CHIPS[chip].clock else table(own, 0.4), flush=True)
            if given.record or given.before:
                rows = figures(depth, topology, own, " before" if given.before else "")
                record(rows, path=POD)
    return 0


def _write(depth: str, topology: str, mesh: dict[str, int], stages: Sequence[StageCost]) -> None:
    """A plan in the place of the one of its depth and topology."""
    plans = read_json(PLANS) if PLANS.exists() else {}
    chip = topology.partition(":")[0]
    plans[f"{depth} {topology}"] = {
        "mesh": mesh,
        "clock_hz": CHIPS[chip].clock or None,
        "chip_memory": gib(CHIPS[chip].memory),
        "peak": gib(max(s.peak_bytes for s in stages)),
        "fits": max(s.peak_bytes for s in stages) <= CHIPS[chip].memory,
        "seconds_of_cycles": sum(
            s.calls * CHIPS[chip].cycles(s.cycles, s.kernel_flops) / (CHIPS[chip].clock or 1)
            for s in stages
        ),
        "command": this_command(),
        "commit": commit_of(ROOT),
        "stages": [{**dataclasses.asdict(s), "peak_bytes": s.peak_bytes} for s in stages],
    }
    write_json(PLANS, dict(sorted(plans.items())))


if __name__ == "__main__":
    command(main, "benchmarks.chips")
