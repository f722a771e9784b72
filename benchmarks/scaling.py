"""What a plan predicts: each stage's work as devices are added, and how close it is to a real run.

    python -m benchmarks.scaling --config=configs/mnist5k.py --workdir=runs/scaling

Wall time on fake devices says nothing, so the compiled programs do: work and traffic of a device
over all calls, and the bytes it is sent. With `--devices=1` memory of the pass and of measuring is
compared with what a run in this process takes; threads of fake devices have buffers of their own.
"""

import ctypes
import functools
import gc
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.program import Asked, Program, listed
from stride_jax import asking, attribution, design, fitting
from stride_jax.frozen import freeze
from stride_jax.run.pipeline import Run
from stride_jax.run.planning import StageCost, extent_of, gib, plan
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import plain, write_json
from stride_jax.runtime.mesh import arranged
from stride_jax.runtime.metrics import resident_bytes
from stride_jax.runtime.progress import bars

_MMAP_THRESHOLD = -3  # of mallopt


def shares(by_devices: dict[int, list[StageCost]]) -> list[dict[str, Any]]:
    """Work of a device over all calls of a stage, relative to `1 / devices` of one device's."""
    rows = []
    first = {stage.name: stage for stage in by_devices[min(by_devices)]}
    for devices, stages in by_devices.items():
        for stage in stages:
            one = first[stage.name]
            rows.append({
                "stage": stage.name,
                "devices": devices,
                "flops_share": devices * stage.calls * stage.device_flops
                / max(one.calls * one.device_flops, 1.0),
                "traffic_share": devices * stage.calls * stage.traffic_bytes
                / max(one.calls * one.traffic_bytes, 1.0),
                "memory_bytes": stage.peak_bytes,
                "sent_bytes_per_call": stage.communicated,
                "calls": stage.calls,
            })  # fmt: skip
    return rows


def taken(work: Callable[[], Any], turns: int = 5) -> list[int]:
    """Largest growth of this process' memory while it works, after a first turn that compiles."""
    # Buffers go back to the system at once: what glibc keeps for later is no need of the program.
    ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 1 << 16)
    growths = []
    for _ in range(turns + 1):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
        before = resident_bytes()
        jax.block_until_ready(work())
        status = pathlib.Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        growths.append(1024 * int(peak.split()[1]) - before)
    return sorted(growths[1:])


def compare(run: Run, predicted: dict[str, StageCost]) -> list[dict[str, Any]]:
    """Predicted and measured memory of the pass and of measuring, on one device."""
    execution = Execution(mesh=arranged((1, 1), jax.devices()))
    settings, read = run.settings.index, run.settings.read
    frozen = freeze(run.tapped, run.model.params, run.train, settings, execution)
    subsets = design.known_membership(frozen.settings.design, run.train.ids)
    fit = functools.partial(fitting.fit_operators, frozen, run.train, subsets, execution)
    operators = fit().operators
    works: dict[str, Callable[[], Any]] = {
        "pass": lambda: vars(fit()),
        "measure": lambda: asking.measure_all(
            frozen, operators, run.query, read.measure, execution
        ),
    }
    rows = []
    for name, work in works.items():
        # Operators are solved for at the end of the same call.
        parts = ("pass", "solve") if name == "pass" else (name,)
        expected = max(s.peak_bytes for full, s in predicted.items() if full.startswith(parts))
        rows.append({"stage": name, "predicted_bytes": expected, "turns_bytes": taken(work)})
    return rows


def main(asked: Asked) -> None:
    """Plan for every number of devices, compare with a run, write `scaling.json`, print."""
    extent, settings, counts = extent_of(asked.config), asked.settings, asked.flags.devices
    jax.config.update("jax_num_cpu_devices", max(counts))
    by_devices = {
        n: plan(settings, extent, arranged((1, n), jax.devices()))
        for n in bars(counts, desc="plan")
    }
    rows = shares(by_devices)
    first = by_devices[min(counts)]
    arithmetic = [
        {"stage": s.name, "plan_flops": s.flops, "compiled_flops": s.device_flops} for s in first
    ]
    memory = []
    if max(counts) == 1:
        run = Run(settings, asked.workdir, bars)
        memory = compare(run, {s.name: s for s in first})
    board = {
        "rows": rows, "flops_of_a_call": arithmetic, "memory": memory,
        "device": str(jax.devices()[0].device_kind), "versions": attribution.versions(),
    }  # fmt: skip
    write_json(asked.workdir / "scaling.json", plain(board))
    print(
        "| stage | devices | FLOPs x devices | traffic x devices | memory, each | sent per call |"
    )
    print("|---|---|---|---|---|---|")
    for r in rows:
        sent = ", ".join(f"{kind} {gib(n)}" for kind, n in r["sent_bytes_per_call"].items()) or "—"
        print(
            f"| {r['stage']} | {r['devices']} | {r['flops_share']:.2f} | "
            f"{r['traffic_share']:.2f} | {gib(r['memory_bytes'])} | {sent} |"
        )
    for r in arithmetic:
        print(
            f"{r['stage']}: {r['plan_flops']:.4g} FLOPs planned, {r['compiled_flops']:.4g} compiled"
        )
    for r in memory:
        low, median, high = np.quantile(r["turns_bytes"], (0, 0.5, 1))
        print(
            f"{r['stage']}: {gib(r['predicted_bytes'])} predicted, {gib(median)} taken "
            f"({gib(low)} to {gib(high)})"
        )


if __name__ == "__main__":
    program = Program("scaling", __doc__)
    program.flag("devices", "Numbers of devices.", type=listed(int), default=(1, 2, 4, 8))
    program.run(main)
