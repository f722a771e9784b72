"""Run a config here on several processes, or hand it to Slurm, a Cloud TPU or xpk.

    stride-jax launch --config=configs/mnist5k.py --workdir=runs/x --target=local --processes=2
    stride-jax launch --config=configs/mnist5k.py --workdir=runs/x --target=slurm \\
        --nodes=2 --gpus_per_node=4 --sweep --dry_run

The code goes along: a wheel of the checkout's commit, the pinned versions of its packages, and the
config's folder; on Slurm into the workdir, on a Cloud TPU to every worker, with xpk into the image.
--python (--docker_image for xpk) names an environment that has the package already, and sends none.
--dry_run prints the job and starts nothing. A job that was preempted exits with code 75: the same
command continues it.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from stride_jax.cli.doors import Parser, read_settings
from stride_jax.run.launching.jobs import following, local_commands, render
from stride_jax.run.launching.parcel import Parcel, pack, parcel_of
from stride_jax.run.launching.settings import ELSEWHERE, TARGETS, LaunchSettings, Slurm, TpuVm, Xpk
from stride_jax.run.launching.shell import quoted
from stride_jax.run.launching.supervise import PREEMPTED, supervise
from stride_jax.run.launching.sweeps import expand
from stride_jax.runtime.files import write_text
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.screen import visible

_ABOUT = {
    LaunchSettings: {
        "name": "Name of the job; the config's by default.",
        "processes": "local: number of processes.",
        "max_restarts": "slurm, xpk: restarts of a preempted job.",
        "mounts": "gcloud-tpu, xpk: folder on the workers that gs:// buckets are mounted in.",
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
        "checkout": "gcloud-tpu: folder of the code on its workers.",
    },
    Xpk: {
        "cluster": "xpk: name of the cluster.",
        "tpu_type": "xpk: type of a slice.",
        "num_slices": "xpk: number of slices.",
        "docker_image": "xpk: image with the package, the config's folder as its working folder.",
        "base_docker_image": "xpk: image with Python 3.11 that the code is added to.",
        "storage": "xpk: attached storage that the workdir is in.",
    },
}

# What takes the job, and must be on this machine's PATH.
_PROGRAMS = {"slurm": "sbatch", "gcloud-tpu": "gcloud", "xpk": "xpk"}


def _parser() -> Parser:
    parser = Parser("launch", __doc__, config=True)
    parser.flag(
        "workdir", "Folder of the run that all hosts see; gs://… for gcloud-tpu and xpk.",
        required=True,
    )  # fmt: skip
    parser.flag("target", "Where it runs.", choices=TARGETS, default="local")
    parser.switch("dry_run", "Print the job; start nothing.")
    parser.switch("sweep", "One job for each variant of the config's sweep(add).")
    parser.switch("uncommitted", "Send changes too that are not committed.")
    parser.flag("python", "An interpreter there that has the package: no code is sent.")
    parser.flag(
        "jax_extra", "Of JAX, for the chips there: tpu, or cuda12 on Slurm with GPUs, by default."
    )
    for cls, flags in _ABOUT.items():
        for name, about in flags.items():
            default = getattr(cls, name)
            parser.flag(name, about, type=type(default), default=default)
    return parser


def _settings(
    given: argparse.Namespace, changes: Mapping[str, str], values: Mapping[str, Any]
) -> LaunchSettings:
    def named(cls: Any, **others: Any) -> Any:
        names = {field.name for field in dataclasses.fields(cls)} - set(others)
        return cls(**others, **{n: v for n, v in vars(given).items() if n in names})

    python, parcel = given.python or "", None
    if given.target == "local":
        python = python or sys.executable
    elif not (given.docker_image if given.target == "xpk" else python):
        chips = "tpu" if given.target != "slurm" else "cuda12" if given.gpus_per_node else ""
        parcel = parcel_of(given.config, given.jax_extra or chips, given.uncommitted)
    # Addresses in the config's file are changed for those that mount them.
    own = {
        name: value
        for name, value in flatten_dict(dict(values), sep=".").items()
        if isinstance(value, str) and value.startswith("gs://")
    }
    return named(
        LaunchSettings,
        overrides=tuple((own | dict(changes)).items()),
        python=python,
        parcel=parcel,
        slurm=named(Slurm),
        tpu_vm=named(TpuVm),
        xpk=named(Xpk),
    )


def start(home: pathlib.Path, *jobs: LaunchSettings) -> int:
    """Run a job here, or submit it; its code, or that of the program that took it.

    Args:
      home: folder for what is sent.
      *jobs: the job, and those that follow it on the same TPU.
    """
    settings = jobs[0]
    if settings.target == "local":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        return supervise(local_commands(settings, port), pathlib.Path(settings.workdir) / "logs")
    script = render(*jobs)
    if settings.target == "slurm":
        return _submit(settings, script)
    folder = _packed(settings.parcel, home) if settings.parcel else home
    return subprocess.run(["bash", "-c", script, "launch", folder], check=False).returncode


def _packed(parcel: Parcel, place: pathlib.Path) -> pathlib.Path:
    print(visible(f"packing the wheel of {parcel.commit}"), flush=True)
    return pack(parcel, place)


def _submit(settings: LaunchSettings, script: str) -> int:
    """Make the environment here, as nodes may have no way to the packages; then queue the job."""
    workdir = pathlib.Path(settings.workdir)
    if settings.parcel is not None:
        folder = _packed(settings.parcel, pathlib.Path(settings.parcels))
        print(visible(f"environment of {settings.parcel.commit} in {folder}/env"), flush=True)
        if code := subprocess.run(["bash", folder / "install.sh"], check=False).returncode:
            return code
    (workdir / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not make it
    write_text(workdir / "launch.sbatch", script)
    return subprocess.run(["sbatch"], input=script, encoding="utf-8", check=False).returncode


def _check_here(settings: LaunchSettings) -> None:
    """What this machine needs to start or submit the job."""
    if settings.target in ("local", "slurm"):
        local_folder(settings.workdir)
    if settings.target == "local":
        return
    program = _PROGRAMS[settings.target]
    if shutil.which(program) is None:
        raise ValueError(
            f"{program} is not on this machine's PATH: launch where it is installed, or print the "
            "job with --dry_run"
        )


def _check_config(given: argparse.Namespace, changes: Mapping[str, str]) -> dict[str, Any]:
    """The config's values; a mistake in them is told here, not by every host.

    Weights that lie where the job runs can't be read from here.
    """
    return read_settings(given.config, changes, adopt=given.target not in ELSEWHERE)[0]


def main(words: Sequence[str]) -> int:
    """Check all jobs, then print, run or submit them one after the other."""
    given, changes = _parser().read(words)
    settings = _settings(given, changes, _check_config(given, changes))
    jobs = expand(settings) if given.sweep else [settings]
    if not given.dry_run:
        _check_here(settings)
    # Jobs of one TPU follow each other there, without this machine.
    together = settings.target == "gcloud-tpu"
    submissions = [jobs] if together else [[job] for job in jobs]
    with contextlib.ExitStack() as stack:
        home = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for own in submissions:
            if given.sweep:
                for job in own:
                    print(visible(f"# {job.job_name}: {quoted(job.workdir)}"), flush=True)
            if given.dry_run:
                print(visible(render(*own)))
            elif code := start(home, *own):
                if code == PREEMPTED:
                    print("preempted, run the same command again to continue")
                return code
            if given.dry_run or settings.target != "local":
                print(visible(following(own[0])), flush=True)
    return 0
