"""What a config will cost on a mesh, before anything runs: no weights, no data.

    stride-jax plan --config=configs/nanochat_d24.py --topology=v5e:16x16
    stride-jax plan --config=configs/nanochat_d24.py --mesh=1,8 --chip=h100
    stride-jax plan --config=configs/mnist5k.py

Compiles the real programs and reads bytes, arithmetic and communication from them. For a TPU
topology (extra `tpu`) they are compiled for its chips, none of which need be there: memory and
cycles are the compiler's own. Else devices of the CPU stand for the real ones. Ends with code 1
where the run would not fit, or gathers an array above the limit.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from stride_jax.cli.doors import Parser, read_settings
from stride_jax.cli.plan_report import chip_table, parse_mesh, table, verdict
from stride_jax.run.planning import (
    CHIPS,
    chip_in,
    devices_of,
    extent_of,
    gib,
    index_bytes,
    needs,
    plan,
)
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.screen import json_text, visible

_GATHER = 256.0


def _parser() -> Parser:
    parser = Parser("plan", __doc__, config=True)
    parser.flag("mesh", "Devices along data and subset, such as 64,4; one device by default, of a "
                "topology as many along subset as divide K.")  # fmt: skip
    parser.flag("topology", "TPUs to compile for, such as v5e:16x16, v5p:4x4x4 or v6e:16x16.")
    parser.flag("chip", "Refuse what does not fit this one.", choices=sorted(CHIPS))
    parser.flag(
        "utilisation", "Share of the published peaks that is reached.", type=float, default=0.4
    )
    parser.flag(
        "gather", "MiB of the largest array that an all-gather may make, with --chip or "
        "--topology.", type=float, default=_GATHER,
    )  # fmt: skip
    parser.switch("json", "Print JSON.")
    return parser


def main(words: Sequence[str]) -> int:
    """Build the settings, compile, print."""
    given, changes = _parser().read(words)
    logging.set_verbosity(logging.WARNING)
    if not 0.01 <= given.utilisation <= 1:
        raise ValueError(f"--utilisation={given.utilisation} must lie in 0.01 to 1")
    if given.gather <= 0:
        raise ValueError(f"--gather={given.gather} MiB must be positive")
    chip = _chip(given.topology, given.chip)
    shape = parse_mesh(given.mesh)
    values, settings = read_settings(given.config, changes)
    extent = extent_of(values)
    if (origin := settings.model.origin) is not None:  # its tables may be padded
        extent = dataclasses.replace(extent, num_classes=origin.num_classes)
    mesh = _mesh(given.topology, shape, settings)
    stages = plan(settings, extent, mesh)
    k, design = settings.index.design.num_subsets, settings.index.design
    counted = max(one.held.host for one in needs(settings, extent, mesh))
    about = {
        "topology": given.topology,
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "clock": CHIPS[chip].clock if given.topology and chip else None,
        "utilisation": given.utilisation,
        "index_bytes": index_bytes(settings, extent, mesh),
        "design_bytes": extent.num_train * design.degree * (2 if k < 2**15 else 4),
        "scores_bytes": extent.num_queries * settings.top_k * 8,
        "host_bytes": int(max(counted, *(stage.host_bytes for stage in stages))),
    }
    if given.json:
        rows = [{**vars(s), "peak_bytes": s.peak_bytes} for s in stages]
        print(json_text({**about, "stages": rows}, indent=1))
    else:
        print(visible(_text(stages, about, given, chip)))
    if chip and (why := verdict(stages, chip, given.gather * 2**20)):
        print(visible(f"{settings.model.kind}: {why}"), file=sys.stderr)
        return 1
    return 0


def _chip(topology: str | None, chip: str | None) -> str | None:
    """The chip that the run must fit."""
    if topology is None:
        return chip
    own = chip_in(topology)
    if chip not in (None, own):
        raise ValueError(
            f"--chip={chip} is not what --topology={topology} is made of: leave it out"
        )
    return own


def _mesh(topology: str | None, shape: tuple[int, int] | None, settings: RunSettings) -> Any:
    """The mesh to compile for: of a topology, or of devices of the CPU."""
    jax.config.update("jax_platforms", "cpu")
    if topology is None:
        data, subset = shape or (1, 1)
        jax.config.update("jax_num_cpu_devices", data * subset)
        return meshes.arranged((data, subset), jax.devices())
    devices = devices_of(topology)
    if shape is None:
        own, k = settings.execution.mesh, settings.index.design.num_subsets
        return meshes.mesh_for(k, own, devices)
    if shape[0] * shape[1] != len(devices):
        raise ValueError(
            f"--mesh={shape[0]},{shape[1]} has {shape[0] * shape[1]} devices, but --topology="
            f"{topology} has {len(devices)}: give two numbers with that product, or leave it out"
        )
    return meshes.arranged(shape, devices)


def _text(stages: Sequence[Any], about: dict[str, Any], given: Any, chip: str | None) -> str:
    """The plan for reading."""
    data, subset = about["mesh"].values()
    held = (
        f"{data} x {subset} devices; index {gib(about['index_bytes'])} whatever N; the design's "
        f"table {gib(about['design_bytes'])} on every device in recovery; a host holds at least "
        f"{gib(about['host_bytes'])}"
    )
    if given.topology and chip:
        said = f"at {CHIPS[chip].clock / 1e9:g} GHz, as the compiler estimates cycles"
        return f"{chip_table(stages, chip)}\n{held}; {said}"
    said = f"at {given.utilisation:.0%} of the published peaks"
    return f"{table(stages, given.utilisation)}\n{held}; {said}"
