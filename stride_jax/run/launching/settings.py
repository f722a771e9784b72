"""What to launch and where, checked before anything starts."""

import dataclasses
import pathlib
import re
from typing import Any

TARGETS = ("local", "slurm", "gcloud-tpu", "xpk")
# What xpk accepts (src/xpk/parser/validators.py): a Kubernetes name with room for its suffixes.
_XPK_NAME = re.compile(r"(?=.{1,40}$)[a-z]([-a-z0-9]*[a-z0-9])?")
# `#SBATCH` lines know no shell quoting, and % is a pattern in them.
_SBATCH_WORD = re.compile(r"[\w./=,:@+-]+")
_SBATCH_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A batch job.

    Attributes:
      partition: its name; the cluster's default where empty.
      time: limit, `days-hours:minutes:seconds`.
      nodes: number of machines.
      gpus_per_node: GPUs of each, one process per GPU; 0: one process, on the CPU.
      cpus_per_task: cores per process.
    """

    partition: str = ""
    time: str = "04:00:00"
    nodes: int = 1
    gpus_per_node: int = 1
    cpus_per_task: int = 8


@dataclasses.dataclass(frozen=True)
class TpuVm:
    """An existing Cloud TPU.

    Attributes:
      tpu_name: name of the TPU.
      zone: zone of the TPU.
      project: gcloud's current one where empty.
      checkout: folder with the config and the environment on every worker, from the home folder.
    """

    tpu_name: str = ""
    zone: str = ""
    project: str = ""
    checkout: str = "stride_jax"


@dataclasses.dataclass(frozen=True)
class Xpk:
    """A workload on a GKE cluster of TPUs.

    Attributes:
      cluster: name of the cluster.
      tpu_type: type of a slice.
      num_slices: number of slices.
      docker_image: image with the package, and the config's folder as its working folder.
      storage: name of an attached storage, the one `workdir` is in.
      zone, project: gcloud's current ones where empty.
    """

    cluster: str = ""
    tpu_type: str = "v5litepod-8"
    num_slices: int = 1
    docker_image: str = ""
    storage: str = ""
    zone: str = ""
    project: str = ""


@dataclasses.dataclass(frozen=True)
class LaunchSettings:
    """One run of a config, somewhere.

    Attributes:
      config: config file, with `:argument` if it takes one.
      workdir: folder of the run's products; on several hosts, one that they all share.
      target: one of `TARGETS`.
      overrides: settings that differ from the config file's, dotted names and values.
      name: name of the job; the config's where empty.
      processes: number on this machine (`local`); the other targets count hosts.
      python: Python interpreter on the target.
      max_restarts: number of times that a preempted job is queued again by itself.
      slurm, tpu_vm, xpk: settings of one target.

    Raises:
      ValueError: settings that the target would refuse, or a workdir that it would lose.
    """

    config: str
    workdir: str
    target: str = "local"
    overrides: tuple[tuple[str, Any], ...] = ()
    name: str = ""
    processes: int = 1
    python: str = "python"
    max_restarts: int = 20
    slurm: Slurm = Slurm()
    tpu_vm: TpuVm = TpuVm()
    xpk: Xpk = Xpk()

    def __post_init__(self) -> None:
        _check_common(self)
        if self.target == "slurm":
            _check_slurm(self)
        elif self.target == "gcloud-tpu":
            _need("gcloud-tpu", tpu_name=self.tpu_vm.tpu_name, zone=self.tpu_vm.zone)
        elif self.target == "xpk":
            _check_xpk(self)

    @property
    def job_name(self) -> str:
        """The given name, or the config's: `bible_gpt.py:runlocal` makes bible-gpt-runlocal."""
        path, _, argument = self.config.partition(":")
        words = f"{pathlib.PurePath(path).stem} {argument}".lower()
        return self.name or re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _check_common(settings: LaunchSettings) -> None:
    path = settings.config.partition(":")[0]
    if settings.target not in TARGETS:
        raise ValueError(f"target={settings.target!r} is not one of {', '.join(TARGETS)}")
    if not pathlib.Path(path).is_file():
        raise ValueError(f"config={path!r} is not a file: start from the folder that has configs/")
    if "://" in settings.workdir or not settings.workdir:
        raise ValueError(
            f"workdir={settings.workdir!r} is not a folder: a run writes to a file system; mount "
            "the bucket (gcsfuse, or xpk storage attach) and give the folder"
        )
    _at_least(1, processes=settings.processes)
    _at_least(0, max_restarts=settings.max_restarts)
    if settings.processes > 1 and settings.target != "local":
        raise ValueError(
            f"processes={settings.processes} is for target=local: slurm takes nodes and "
            "gpus_per_node, xpk num_slices, and a TPU's number is fixed"
        )


def _check_slurm(settings: LaunchSettings) -> None:
    slurm = settings.slurm
    _at_least(1, nodes=slurm.nodes, cpus_per_task=slurm.cpus_per_task)
    _at_least(0, gpus_per_node=slurm.gpus_per_node)
    if not _SBATCH_TIME.fullmatch(slurm.time):
        raise ValueError(f"time={slurm.time!r} is no time limit: give 04:00:00 or 2-00:00:00")
    for key, value in [
        *(("workdir", settings.workdir), ("name", settings.job_name)),
        ("partition", slurm.partition or "default"),
    ]:
        if not _SBATCH_WORD.fullmatch(value):
            raise ValueError(
                f"{key}={value!r} can't stand in an sbatch script: use letters, digits and "
                "./=,:@+-_"
            )


def _check_xpk(settings: LaunchSettings) -> None:
    xpk = settings.xpk
    _need("xpk", cluster=xpk.cluster, tpu_type=xpk.tpu_type, docker_image=xpk.docker_image)
    _at_least(1, num_slices=xpk.num_slices)
    if not _XPK_NAME.fullmatch(settings.job_name):
        raise ValueError(
            f"name={settings.job_name!r} is no name of a workload: give --name, at most 40 small "
            "letters, digits and inner hyphens, a letter first"
        )
    if not pathlib.PurePosixPath(settings.workdir).is_absolute():
        raise ValueError(
            f"workdir={settings.workdir!r} would be lost with the container: give the absolute "
            "path of a folder in a mounted storage (--storage)"
        )


def _need(target: str, **given: str) -> None:
    for key, value in given.items():
        if not value:
            raise ValueError(f"target={target} needs --{key}: give one")


def _at_least(least: int, **given: int) -> None:
    for key, value in given.items():
        if value < least:
            raise ValueError(f"{key}={value} must be at least {least}")
