"""Run a config from data to summary.

    python -m experiments.run --config=configs/mnist5k.py --workdir=runs/quickstart

On several hosts the same command runs on each with `--multihost` (`experiments.launch` writes it).
Asked to stop by SIGTERM, it saves and exits with code 75; the same command goes on.
"""

import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from stride_jax.cli import figures
from stride_jax.run import summary
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import check_workdir, run_settings
from stride_jax.runtime.durable import StopRequest
from stride_jax.runtime.metrics import MetricsWriter
from stride_jax.runtime.processes import Cluster, connect, leads, wait
from stride_jax.runtime.progress import bars

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run's products.", required=True)
_REUSE = flags.DEFINE_bool("reuse", False, "Take over a folder of other settings; reuse stages.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other processes of this job.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of the first process.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the whole job.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This one's.", lower_bound=0)
_PROFILE = flags.DEFINE_enum(
    "profile", None, ["operators", "measurements", "recovery", "bank"],
    "Stage to write a profile of, into <workdir>/profile, if it has not run yet.",
)  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The closing table: a line a method, then the ceiling and where the time went."""
    lines = [f"{'method':<16}{'LDS':>8}{'95 % interval':>20}{'seconds':>10}"]
    for name, row in sorted(found["methods"].items(), key=lambda item: -item[1]["lds"]):
        low, high = row["lds_ci95"]
        interval = f"[{low:.3f}, {high:.3f}]"
        lines.append(f"{name:<16}{row['lds']:>8.3f}{interval:>20}{row['seconds']:>10.1f}")
    detail, bank = found["ceiling_detail"], found["settings"]["bank"]
    lines += [
        f"ceiling: reliability {detail['reliability']:.3f}, a perfect predictor scores about "
        f"{detail['perfect_predictor']:.3f}",
        f"bank: m = {bank['num_subsets']}, alpha = {bank['alpha']}, {bank['num_seeds']} seeds; "
        f"{found['num_train']} train, {found['num_queries']} queries; "
        f"accuracy {found['accuracy']:.3f}, held-out loss {found['held_out_loss']:.3f} nats, "
        f"temperature {found['temperature']:.2f}",
        "seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in found["stages"].items()),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Build the settings, run the pipeline, print the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    settings = run_settings(_CONFIG.value.to_dict())
    cluster = Cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _MULTIHOST.value:
        connect(cluster)
    elif cluster != Cluster():
        raise app.UsageError("--coordinator, --num_processes and --process_id need --multihost")
    stop, workdir = StopRequest().listen(), pathlib.Path(_WORKDIR.value)
    with leaving_others() if _MULTIHOST.value else contextlib.nullcontext():
        check_workdir(workdir, settings, _REUSE.value)
        wait("workdir checked")
        report = MetricsWriter(workdir / "metrics") if leads() else None
        run = Run(settings, workdir, bars, stop, report)
        if _PROFILE.value:
            with jax.profiler.trace(str(workdir / "profile")):
                getattr(run, _PROFILE.value)
        found = summary.write(run)
        if report is not None:
            report.close()
            show(run, found)


@contextlib.contextmanager
def leaving_others() -> Iterator[None]:
    """End at once on any error: JAX's own way out waits minutes for processes that are stuck."""
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def show(run: Run, found: dict[str, Any]) -> None:
    """Print the table, and draw what can be drawn."""
    written = ["summary.json", "attribution.parquet"]
    if run.query.inputs.ndim == 4:  # images
        written.append("proponents.png")
        figures.proponents(run, run.workdir / written[-1])
    print(table(found))
    print(f"written to {run.workdir}: {', '.join(written)}")


if __name__ == "__main__":
    app.run(main)
