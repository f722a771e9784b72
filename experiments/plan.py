"""What a config will cost on a mesh, before anything runs: no weights, no data.

    python -m experiments.plan --config=configs/nanochat_d24.py --mesh=1,8 --chip=h100
    python -m experiments.plan --config=configs/mnist5k.py

Compiles the real programs for so many devices (of the CPU, which stand for the real ones) and reads
bytes, arithmetic and communication from them. Ends with code 1 where the run would not fit.
"""

import json
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from stride_jax.planning import CHIPS, StageCost, extent_of, gib, plan
from stride_jax.run_settings import run_settings
from stride_jax.runtime.mesh import arranged

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_MESH = flags.DEFINE_string("mesh", None, "Devices along data and subset, such as 64,4; one if not")
_CHIP = flags.DEFINE_enum("chip", None, sorted(CHIPS), "Refuse what does not fit this one.")
_UTILISATION = flags.DEFINE_float(
    "utilisation", 0.4, "Share of the published peaks that is reached.", lower_bound=0.01,
    upper_bound=1.0,
)  # fmt: skip
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")

_REMEDY = {
    "pass": "lower stride.chunk_bytes, stride.output_rank or stride.basis.rank, give the mesh more "
    "devices along subset, or set mesh.parameters='sharded'",
    "solve": "give the mesh more devices along subset, or lower stride.output_rank or "
    "stride.basis.rank",
    "measure": "lower stride.measure.max_bytes, or give the mesh more devices along subset",
    "recovery": "lower stride.lasso.memory_bytes or stride.lasso.chunk",
    "bank": "lower bank.models_at_once or train.batch_size, or raise train.accumulation",
}


def parse_mesh(text: str | None) -> tuple[int, int]:
    """`data,subset` as two numbers; one device for None.

    >>> parse_mesh("64,4")
    (64, 4)
    """
    if text is None:
        return 1, 1
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise ValueError(f"--mesh={text!r}: give devices along data and along subset, such as 64,4")
    return int(parts[0]), int(parts[1])


def table(stages: Sequence[StageCost], devices: int, utilisation: float) -> str:
    """A line a stage: memory on a device, arithmetic, communication, seconds by chip."""
    chips = CHIPS
    head = ["stage", "calls", "lives there", "temporary", "peak", "GFLOP a call", "sent a call"]
    rows = [[*head, *chips]]
    totals = dict.fromkeys(chips, 0.0)
    for stage in stages:
        each = stage.flops / devices if stage.spread else stage.flops
        seconds = {
            n: stage.calls * c.seconds(each, stage.traffic_bytes, utilisation)
            for n, c in chips.items()
        }
        totals = {n: totals[n] + seconds[n] for n in chips}
        rows.append([
            stage.name, f"{stage.calls:,}", gib(stage.argument_bytes + stage.output_bytes),
            gib(stage.temporary_bytes), gib(stage.peak_bytes), f"{stage.flops / 1e9:,.2f}",
            gib(sum(stage.communicated.values())), *(f"{s:.3g} s" for s in seconds.values()),
        ])  # fmt: skip
    rows.append(["all", *[""] * (len(head) - 1), *(f"{s:.3g} s" for s in totals.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def verdict(stages: Sequence[StageCost], chip: str) -> str | None:
    """What does not fit a chip's memory and which setting would help; None if all does."""
    worst = max(stages, key=lambda stage: stage.peak_bytes)
    room = CHIPS[chip].memory
    if worst.peak_bytes <= room:
        return None
    remedy = _REMEDY[worst.name.partition(",")[0]]
    return (
        f"does not fit {chip}: '{worst.name}' takes {gib(worst.peak_bytes)} a device of "
        f"{gib(room)}; {remedy}"
    )


def main(argv: Sequence[str]) -> None:
    """Build the settings, compile, print."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    values = _CONFIG.value.to_dict()
    extent = extent_of(values)
    settings = run_settings(values)
    data, subset = parse_mesh(_MESH.value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", data * subset)
    mesh = arranged((data, subset), jax.devices())
    # Without a section of its own the ground truth is made by other means, if at all.
    stages = plan(settings, extent, mesh, with_bank="bank" in values)
    k, design = settings.stride.design.num_subsets, settings.stride.design
    solve = next(stage for stage in stages if stage.name.startswith("solve"))
    about = {
        "devices": data * subset,
        "utilisation": _UTILISATION.value,
        "index_bytes": solve.output_bytes * subset,
        "design_bytes": extent.num_train * design.degree * (2 if k < 2**15 else 4),
        "scores_bytes": extent.num_queries * settings.top_k * 8,
    }
    if _JSON.value:
        rows = [{**vars(s), "peak_bytes": s.peak_bytes} for s in stages]
        print(json.dumps({**about, "stages": rows}, indent=1))
    else:
        print(table(stages, data * subset, _UTILISATION.value))
        print(
            f"{data} x {subset} devices; index {gib(about['index_bytes'])} whatever N; the "
            f"design's table {gib(about['design_bytes'])} on every device in recovery; at "
            f"{_UTILISATION.value:.0%} of the published peaks"
        )
    if _CHIP.value and (why := verdict(stages, _CHIP.value)):
        raise SystemExit(f"{settings.model.kind}: {why}")


if __name__ == "__main__":
    app.run(main)
