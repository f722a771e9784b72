"""Run a config here on several processes, or hand it to Slurm, a Cloud TPU or xpk.

    python -m experiments.launch --config=configs/mnist5k.py --workdir=runs/x --target=local \\
        --processes=2
    python -m experiments.launch --config=configs/mnist5k.py --workdir=runs/x --target=slurm \\
        --nodes=2 --gpus_per_node=4 --sweep --dry_run

`--dry_run` prints the job and starts nothing. A job that was preempted exits with code 75: the same
command goes on where it stopped.
"""

import dataclasses
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from stride_jax.run.launching.jobs import local_commands, render, submission
from stride_jax.run.launching.settings import TARGETS, LaunchSettings, Slurm, TpuVm, Xpk
from stride_jax.run.launching.supervise import PREEMPTED, supervise
from stride_jax.run.launching.sweeps import expand

config_flags.DEFINE_config_file("config", lock_config=True)
flags.mark_flag_as_required("config")
flags.DEFINE_string("workdir", None, "Folder of the run; all hosts must see it.", required=True)
_TARGET = flags.DEFINE_enum("target", "local", TARGETS, "Where it runs.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the job; start nothing.")
_SWEEP = flags.DEFINE_bool("sweep", False, "A job for each variant of the config's sweep(add).")
flags.DEFINE_string("name", LaunchSettings.name, "Of the job; the config's by default.")
flags.DEFINE_integer("processes", LaunchSettings.processes, "local: processes.")
flags.DEFINE_integer("max_restarts", LaunchSettings.max_restarts, "slurm, xpk: if preempted.")
_PYTHON = flags.DEFINE_string(
    "python", None, "The interpreter there: this one, .venv/bin/python on a Cloud TPU, xpk: python."
)
flags.DEFINE_string("partition", Slurm.partition, "slurm: the cluster's default if empty.")
flags.DEFINE_string("time", Slurm.time, "slurm: limit, [days-]hours:minutes:seconds.")
flags.DEFINE_integer("nodes", Slurm.nodes, "slurm: machines.")
flags.DEFINE_integer("gpus_per_node", Slurm.gpus_per_node, "slurm: one process each; 0: CPU.")
flags.DEFINE_integer("cpus_per_task", Slurm.cpus_per_task, "slurm: cores of a process.")
flags.DEFINE_string("zone", TpuVm.zone, "gcloud-tpu, xpk: zone.")
flags.DEFINE_string("project", TpuVm.project, "gcloud-tpu, xpk: gcloud's current one if empty.")
flags.DEFINE_string("tpu_name", TpuVm.tpu_name, "gcloud-tpu: name of the TPU.")
flags.DEFINE_string("checkout", TpuVm.checkout, "gcloud-tpu: this repository on its workers.")
flags.DEFINE_string("cluster", Xpk.cluster, "xpk: name of the cluster.")
flags.DEFINE_string("tpu_type", Xpk.tpu_type, "xpk: of a slice.")
flags.DEFINE_integer("num_slices", Xpk.num_slices, "xpk: of them.")
flags.DEFINE_string("docker_image", Xpk.docker_image, "xpk: with this repository as its folder.")
flags.DEFINE_string("storage", Xpk.storage, "xpk: attached storage that the workdir is in.")


def _named(cls: Any, **given: Any) -> Any:
    """A settings dataclass from the flags called like its fields."""
    names = {field.name for field in dataclasses.fields(cls)} - set(given)
    return cls(**given, **{n: flags.FLAGS[n].value for n in names if n in flags.FLAGS})


def _settings() -> LaunchSettings:
    config = flags.FLAGS["config"]
    elsewhere = {"gcloud-tpu": ".venv/bin/python", "xpk": "python"}
    return _named(
        LaunchSettings,
        config=config_flags.get_config_filename(config),
        overrides=tuple(config_flags.get_override_values(config).items()),
        python=_PYTHON.value or elsewhere.get(_TARGET.value, sys.executable),
        slurm=_named(Slurm),
        tpu_vm=_named(TpuVm),
        xpk=_named(Xpk),
    )


def start(settings: LaunchSettings) -> int:
    """Run a job here, or submit it; its code, or that of the program that took it."""
    workdir = pathlib.Path(settings.workdir)
    if settings.target == "local":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        return supervise(local_commands(settings, port), workdir / "logs")
    words, script = submission(settings), None
    if settings.target == "slurm":
        script = render(settings)
        (workdir / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not make it
        (workdir / "launch.sbatch").write_text(script)
    return subprocess.run(words, input=script, text=True, check=False).returncode


def _check_program(settings: LaunchSettings) -> None:
    if settings.target == "local":
        return
    program = submission(settings)[0]
    if shutil.which(program) is None:
        raise ValueError(
            f"{program} is not on this machine's PATH: launch where it is installed, or print the "
            "job with --dry_run"
        )


def main(argv: Sequence[str]) -> None:
    """Check all jobs, then print, run or submit them one after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        settings = _settings()
        jobs = expand(settings) if _SWEEP.value else [settings]
        if not _DRY_RUN.value:
            _check_program(settings)
    except ValueError as error:
        raise SystemExit(f"launch: {error}") from error
    for job in jobs:
        if _SWEEP.value:
            print(f"# {job.job_name}: {shlex.quote(job.workdir)}", flush=True)
        if _DRY_RUN.value:
            print(render(job))
            continue
        code = start(job)
        if code == PREEMPTED:
            print("preempted, run the same command again to continue")
        if code:
            sys.exit(code)


if __name__ == "__main__":
    app.run(main)
