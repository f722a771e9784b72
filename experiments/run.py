"""Run a config from data to summary.

python -m experiments.run --config=configs/mnist5k.py --workdir=runs/quickstart
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import figures
from stride_jax.pipeline import Run, RunSettings
from stride_jax.runtime.progress import bars
from stride_jax.runtime.settings import build

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run's products.", required=True)


def table(summary: dict[str, Any]) -> str:
    """The closing table: a line a method, then the ceiling and where the time went."""
    lines = [f"{'method':<16}{'LDS':>8}{'95 % interval':>20}{'seconds':>10}"]
    for name, row in sorted(summary["methods"].items(), key=lambda item: -item[1]["lds"]):
        low, high = row["lds_ci95"]
        interval = f"[{low:.3f}, {high:.3f}]"
        lines.append(f"{name:<16}{row['lds']:>8.3f}{interval:>20}{row['seconds']:>10.1f}")
    detail, bank = summary["ceiling_detail"], summary["settings"]["bank"]
    lines += [
        f"ceiling: reliability {detail['reliability']:.3f}, a perfect predictor scores about "
        f"{detail['perfect_predictor']:.3f}",
        f"bank: m = {bank['num_subsets']}, alpha = {bank['alpha']}, {bank['num_seeds']} seeds; "
        f"{summary['num_train']} train, {summary['num_queries']} queries; "
        f"accuracy {summary['accuracy']:.3f}, held-out loss {summary['held_out_loss']:.3f} nats, "
        f"temperature {summary['temperature']:.2f}",
        "seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in summary["stages"].items()),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Build the settings, run the pipeline, print the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    values = _CONFIG.value.to_dict()
    for section in ("leaderboard", "retrieval"):  # for the benchmarks
        values.pop(section, None)
    run = Run(build(RunSettings, values), _WORKDIR.value, bars)
    summary = run.write()
    written = ["summary.json", "attribution.parquet"]
    if run.query.inputs.ndim == 4:  # images
        written.append("proponents.png")
        figures.proponents(run, pathlib.Path(_WORKDIR.value) / written[-1])
    print(table(summary))
    print(f"written to {_WORKDIR.value}: {', '.join(written)}")


if __name__ == "__main__":
    app.run(main)
