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

from stride_jax.cli.plan_report import parse_mesh, table, verdict
from stride_jax.run.planning import CHIPS, extent_of, gib, index_bytes, plan
from stride_jax.run.settings import run_settings
from stride_jax.runtime.mesh import arranged

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_MESH = flags.DEFINE_string("mesh", None, "Devices along data and subset, such as 64,4; one if not")
_CHIP = flags.DEFINE_enum("chip", None, sorted(CHIPS), "Refuse what does not fit this one.")
_UTILISATION = flags.DEFINE_float(
    "utilisation", 0.4, "Share of the published peaks that is reached.", lower_bound=0.01,
    upper_bound=1.0,
)  # fmt: skip
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")


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
    about = {
        "devices": data * subset,
        "utilisation": _UTILISATION.value,
        "index_bytes": index_bytes(settings, extent, mesh),
        "design_bytes": extent.num_train * design.degree * (2 if k < 2**15 else 4),
        "scores_bytes": extent.num_queries * settings.top_k * 8,
    }
    if _JSON.value:
        rows = [{**vars(s), "peak_bytes": s.peak_bytes} for s in stages]
        print(json.dumps({**about, "stages": rows}, indent=1))
    else:
        print(table(stages, _UTILISATION.value))
        print(
            f"{data} x {subset} devices; index {gib(about['index_bytes'])} whatever N; the "
            f"design's table {gib(about['design_bytes'])} on every device in recovery; at "
            f"{_UTILISATION.value:.0%} of the published peaks"
        )
    if _CHIP.value and (why := verdict(stages, _CHIP.value)):
        raise SystemExit(f"{settings.model.kind}: {why}")


if __name__ == "__main__":
    app.run(main)
