"""A plan for reading: its table, and whether it fits a chip."""

from collections.abc import Sequence

from stride_jax.run.planning import CHIPS, StageCost, gib

_REMEDY = {
    "pass": "lower execution.memory, index.output_rank or index.basis.rank, give the mesh more "
    "devices along subset, or set execution.mesh.parameters='sharded'",
    "solve": "give the mesh more devices along subset, or lower index.output_rank or "
    "index.basis.rank",
    "training": "set index.fit='closed_form', which holds nothing of size N, lower "
    "execution.memory, or give the mesh more devices along subset",
    "measure": "lower execution.memory, or give the mesh more devices along subset",
    "recovery": "lower execution.memory or read.lasso.chunk",
    "unit": "lower unit.models_at_once or train.batch_size, or raise train.accumulation",
    "pre-training": "set model.gpt.remat=True or execution.mesh.parameters='sharded', or raise "
    "train.accumulation",
    "loading the model": "set execution.mesh.parameters='sharded', or lower num_checkpoints",
    "basis": "lower execution.memory or index.basis.sample",
    "bank": "lower bank.models_at_once or train.batch_size, or raise train.accumulation",
}


def parse_mesh(text: str | None) -> tuple[int, int] | None:
    """`data,subset` as two numbers; None where nothing is said.

    >>> parse_mesh("64,4")
    (64, 4)
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise ValueError(f"--mesh={text!r}: give devices along data and along subset, such as 64,4")
    return int(parts[0]), int(parts[1])


def chip_table(stages: Sequence[StageCost], chip: str) -> str:
    """One line per stage, as compiled for a topology: memory on a chip, collectives, cycles, time.

    Collectives, what they send and cycles are per row that a chip works through, a sequence or a
    query, where a stage has such. Time is that of cycles at the chip's clock, and beside it that of
    what is sent at the speed of its links, as if neither ran beside the other.
    """
    own = CHIPS[chip]
    rows = [[
        "stage", "calls", "arguments", "temporary", "output", "peak", "largest gather",
        "collectives", "sent", "Mcycles", "time", "of sending", "host",
    ]]  # fmt: skip
    for s in stages:
        each, sent = s.rows_each, sum(s.communicated.values())
        cycles = own.cycles(s.cycles, s.kernel_flops)
        rows.append([
            s.name, f"{s.calls:,}", gib(s.argument_bytes), gib(s.temporary_bytes),
            gib(s.output_bytes), gib(s.peak_bytes), gib(s.largest_gather),
            f"{sum(s.collectives.values()) / each:.1f}", gib(sent / each),
            f"{cycles / each / 1e6:,.2f}", _time(s.calls * cycles / own.clock),
            _time(s.calls * sent / own.links), gib(s.host_bytes),
        ])  # fmt: skip
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def table(stages: Sequence[StageCost], utilisation: float) -> str:
    """One line per stage: memory on a device, work of one call, seconds of all calls per chip.

    Seconds are those of arithmetic; in the last line a stage takes as long as its traffic where
    that is longer: the most, since compilers for accelerators fuse more than the one for CPUs.
    """
    head = ["stage", "calls", "lives there", "temporary", "peak", "GFLOP", "traffic", "sent"]
    rows = [[*head, *CHIPS]]
    for stage in stages:
        seconds = [stage.calls * c.seconds(stage.device_flops, utilisation) for c in CHIPS.values()]
        rows.append([
            stage.name, f"{stage.calls:,}", gib(stage.argument_bytes + stage.output_bytes),
            gib(stage.temporary_bytes), gib(stage.peak_bytes), f"{stage.device_flops / 1e9:,.2f}",
            gib(stage.traffic_bytes), gib(sum(stage.communicated.values())),
            *map(_time, seconds),
        ])  # fmt: skip
    for name, counts in (("all, by arithmetic", 0.0), ("all, by traffic too", 1.0)):
        totals = [
            sum(
                stage.calls
                * c.seconds(stage.device_flops, utilisation, counts * stage.traffic_bytes)
                for stage in stages
            )
            for c in CHIPS.values()
        ]
        rows.append([name, *[""] * (len(head) - 1), *map(_time, totals)])
    return _aligned(rows)


def _time(seconds: float) -> str:
    """Seconds, or hours where there are many.

    >>> _time(2.5), _time(36000)
    ('2.5 s', '10 h')
    """
    return f"{seconds:.3g} s" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def verdict(
    stages: Sequence[StageCost], chip: str, most_gathered: float = float("inf")
) -> str | None:
    """What a run would do that it must not, and which setting would help; None if all is well.

    Args:
      stages: the plan.
      chip: whose memory it must fit.
      most_gathered: bytes of the largest array that an all-gather may make.
    """
    worst, room = max(stages, key=lambda stage: stage.peak_bytes), CHIPS[chip].memory
    if worst.peak_bytes > room:
        return (
            f"does not fit {chip}: '{worst.name}' takes {gib(worst.peak_bytes)} on a device of "
            f"{gib(room)}; {_REMEDY[worst.name.partition(',')[0]]}"
        )
    widest = max(stages, key=lambda stage: stage.largest_gather)
    if widest.largest_gather > most_gathered:
        return (
            f"'{widest.name}' gathers {gib(widest.largest_gather)} into one array on every device, "
            f"above the limit of {gib(most_gathered)}; give the mesh fewer devices along data, or "
            "raise --gather"
        )
    return None
