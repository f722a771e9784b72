"""What a config will cost on a mesh, before anything runs: no weights, no data.

    stride-jax plan --config=configs/nanochat_d24.py --mesh=1,8 --chip=h100
    stride-jax plan --config=configs/mnist5k.py

Compiles the real programs for that many devices (of the CPU, which stand for the real ones) and
reads bytes, arithmetic and communication from them. Ends with code 1 where the run would not fit.
"""

import dataclasses
import sys
from collections.abc import Sequence

import jax
from absl import logging

from stride_jax.cli.doors import Parser, read_settings
from stride_jax.cli.plan_report import parse_mesh, table, verdict
from stride_jax.run.planning import CHIPS, extent_of, gib, index_bytes, needs, plan
from stride_jax.runtime.mesh import arranged
from stride_jax.runtime.screen import json_text, visible


def _parser() -> Parser:
    parser = Parser("plan", __doc__, config=True)
    parser.flag("mesh", "Devices along data and subset, such as 64,4; one device by default.")
    parser.flag("chip", "Refuse what does not fit this one.", choices=sorted(CHIPS))
    parser.flag(
        "utilisation", "Share of the published peaks that is reached.", type=float, default=0.4
    )
    parser.switch("json", "Print JSON.")
    return parser


def main(words: Sequence[str]) -> int:
    """Build the settings, compile, print."""
    given, changes = _parser().read(words)
    logging.set_verbosity(logging.WARNING)
    if not 0.01 <= given.utilisation <= 1:
        raise ValueError(f"--utilisation={given.utilisation} must lie in 0.01 to 1")
    data, subset = parse_mesh(given.mesh)
    values, settings = read_settings(given.config, changes)
    extent = extent_of(values)
    if (origin := settings.model.origin) is not None:  # its tables may be padded
        extent = dataclasses.replace(extent, num_classes=origin.num_classes)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", data * subset)
    mesh = arranged((data, subset), jax.devices())
    stages = plan(settings, extent, mesh)
    k, design = settings.index.design.num_subsets, settings.index.design
    about = {
        "devices": data * subset,
        "utilisation": given.utilisation,
        "index_bytes": index_bytes(settings, extent, mesh),
        "design_bytes": extent.num_train * design.degree * (2 if k < 2**15 else 4),
        "scores_bytes": extent.num_queries * settings.top_k * 8,
        "host_bytes": int(max(one.held.host for one in needs(settings, extent, mesh))),
    }
    if given.json:
        rows = [{**vars(s), "peak_bytes": s.peak_bytes} for s in stages]
        print(json_text({**about, "stages": rows}, indent=1))
    else:
        print(visible(table(stages, given.utilisation)))
        line = (
            f"{data} x {subset} devices; index {gib(about['index_bytes'])} whatever N; the "
            f"design's table {gib(about['design_bytes'])} on every device in recovery; the host "
            f"holds at least {gib(about['host_bytes'])}; at {given.utilisation:.0%} of the "
            "published peaks"
        )
        print(visible(line))
    if given.chip and (why := verdict(stages, given.chip)):
        print(visible(f"{settings.model.kind}: {why}"), file=sys.stderr)
        return 1
    return 0
