"""Run a config here on several processes, or hand it to Slurm, a Cloud TPU or xpk.

    stride-jax launch --config=configs/mnist5k.py --workdir=runs/x --target=local --processes=2
    stride-jax launch --config=configs/mnist5k.py --workdir=runs/x --target=slurm \\
        --nodes=2 --gpus_per_node=4 --sweep --dry_run

--dry_run prints the job and starts nothing. A job that was preempted exits with code 75: the same
command continues it.
"""

import argparse
import dataclasses
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from stride_jax.cli.doors import Parser, read_settings
from stride_jax.run.launching.jobs import local_commands, quoted, render, submission
from stride_jax.run.launching.settings import TARGETS, LaunchSettings, Slurm, TpuVm, Xpk
from stride_jax.run.launching.supervise import PREEMPTED, supervise
from stride_jax.run.launching.sweeps import expand
from stride_jax.runtime.files import atomic_path
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.screen import visible

_ABOUT = {
    LaunchSettings: {
        "name": "Name of the job; the config's by default.",
        "processes": "local: number of processes.",
        "max_restarts": "slurm, xpk: restarts of a preempted job.",
    },
    Slurm: {
        "partition": "slurm: partition; the cluster's default if empty.",
        "time": "slurm: limit, [days-]hours:minutes:seconds.",
        "nodes": "slurm: machines.",
        "gpus_per_node": "slurm: GPUs on each, one process per GPU; 0: one on the CPU.",
        "cpus_per_task": "slurm: cores of a process.",
    },
    TpuVm: {
        "zone": "gcloud-tpu, xpk: zone.",
        "project": "gcloud-tpu, xpk: project; gcloud's current one if empty.",
        "tpu_name": "gcloud-tpu: name of the TPU.",
        "checkout": "gcloud-tpu: folder with the config on its workers.",
    },
    Xpk: {
        "cluster": "xpk: name of the cluster.",
        "tpu_type": "xpk: type of a slice.",
        "num_slices": "xpk: number of slices.",
        "docker_image": "xpk: image with the package, the config's folder as its working folder.",
        "storage": "xpk: attached storage that the workdir is in.",
    },
}


def _parser() -> Parser:
    parser = Parser("launch", __doc__, config=True)
    parser.flag("workdir", "Folder of the run; all hosts must see it.", required=True)
    parser.flag("target", "Where it runs.", choices=TARGETS, default="local")
    parser.switch("dry_run", "Print the job; start nothing.")
    parser.switch("sweep", "One job for each variant of the config's sweep(add).")
    parser.flag(
        "python",
        "The interpreter there: this one locally, .venv/bin/python on a Cloud TPU, python for xpk.",
    )
    for cls, flags in _ABOUT.items():
        for name, about in flags.items():
            default = getattr(cls, name)
            parser.flag(name, about, type=type(default), default=default)
    return parser


def _settings(given: argparse.Namespace, changes: Mapping[str, str]) -> LaunchSettings:
    elsewhere = {"gcloud-tpu": ".venv/bin/python", "xpk": "python"}

    def named(cls: Any, **others: Any) -> Any:
        names = {field.name for field in dataclasses.fields(cls)} - set(others)
        return cls(**others, **{n: v for n, v in vars(given).items() if n in names})

    return named(
        LaunchSettings,
        overrides=tuple(changes.items()),
        python=given.python or elsewhere.get(given.target, sys.executable),
        slurm=named(Slurm),
        tpu_vm=named(TpuVm),
        xpk=named(Xpk),
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
        with atomic_path(workdir / "launch.sbatch") as temporary:
            temporary.write_text(script, encoding="utf-8")
    return subprocess.run(words, input=script, encoding="utf-8", check=False).returncode


def _check_here(settings: LaunchSettings) -> None:
    """What this machine needs to start or submit the job."""
    if settings.target in ("local", "slurm"):
        local_folder(settings.workdir)
    if settings.target == "local":
        return
    program = submission(settings)[0]
    if shutil.which(program) is None:
        raise ValueError(
            f"{program} is not on this machine's PATH: launch where it is installed, or print the "
            "job with --dry_run"
        )


def main(words: Sequence[str]) -> int:
    """Check all jobs, then print, run or submit them one after the other."""
    given, changes = _parser().read(words)
    settings = _settings(given, changes)
    read_settings(given.config, changes)  # a mistake is told here, not by every host
    jobs = expand(settings) if given.sweep else [settings]
    if not given.dry_run:
        _check_here(settings)
    for job in jobs:
        if given.sweep:
            print(visible(f"# {job.job_name}: {quoted(job.workdir)}"), flush=True)
        if given.dry_run:
            print(visible(render(job)))
            continue
        code = start(job)
        if code == PREEMPTED:
            print("preempted, run the same command again to continue")
        if code:
            return code
    return 0
