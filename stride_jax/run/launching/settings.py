"""What to launch and where, checked before anything starts."""

import dataclasses
import pathlib
import re
from typing import Any

from stride_jax.run.launching.buckets import ADDRESS, attaching, buckets, mounted
from stride_jax.run.launching.parcel import Parcel

# A preempted process has this long to save, on every target.
SAVING_SECONDS = 120

TARGETS = ("local", "slurm", "gcloud-tpu", "xpk")
ELSEWHERE = ("gcloud-tpu", "xpk")
"""Targets whose files are others than this machine's, and whose workers mount buckets."""
# What xpk accepts (src/xpk/parser/validators.py): a Kubernetes name with room for its suffixes.
_XPK_NAME = re.compile(r"(?=.{1,40}$)[a-z]([-a-z0-9]*[a-z0-9])?")
# `#SBATCH` lines know no shell quoting, and % is a pattern in them.
_SBATCH_WORD = re.compile(r"[\w./=,:@+-]+")
_FILE_NAME = re.compile(r"\w[\w.-]*")
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
      checkout: folder of the code on every worker, from the home folder.
    """

    tpu_name: str = ""
    zone: str = ""
    project: str = ""
    checkout: str = "stride_jax"

    @property
    def where(self) -> list[str]:
        """Flags of gcloud that say which."""
        return _flags(zone=self.zone, project=self.project)


@dataclasses.dataclass(frozen=True)
class Xpk:
    """A workload on a GKE cluster of TPUs.

    Attributes:
      cluster: name of the cluster.
      tpu_type: type of a slice.
      num_slices: number of slices.
      docker_image: image with the package, and the config's folder as its working folder; empty:
        the code is added to `base_docker_image`.
      base_docker_image: image with Python 3.11.
      storage: name of an attached storage, the one `workdir` is in.
      zone, project: gcloud's current ones where empty.
    """

    cluster: str = ""
    tpu_type: str = "v5litepod-8"
    num_slices: int = 1
    docker_image: str = ""
    base_docker_image: str = "python:3.11"
    storage: str = ""
    zone: str = ""
    project: str = ""

    @property
    def where(self) -> list[str]:
        """Flags of xpk that say which cluster."""
        return _flags(cluster=self.cluster, zone=self.zone, project=self.project)


@dataclasses.dataclass(frozen=True)
class LaunchSettings:
    """One run of a config, somewhere.

    Attributes:
      config: config file, with `:argument` if it takes one.
      workdir: folder of the run's products; on several hosts, one that they all share. On a Cloud
        TPU and xpk also an address such as `gs://bucket/runs/x`.
      target: one of `TARGETS`.
      overrides: settings that differ from the config file's, dotted names and values.
      name: name of the job; the config's where empty.
      processes: number on this machine (`local`); the other targets count hosts.
      python: interpreter on the target that has the package; empty: that of the parcel.
      parcel: code that is sent; None where it is there.
      code: folder for parcels (`slurm`); by default in the workdir.
      mounts: folder on the workers that buckets are mounted in (`gcloud-tpu`, `xpk`).
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
    python: str = ""
    parcel: Parcel | None = None
    code: str = ""
    mounts: str = "/tmp/gcs"
    max_restarts: int = 20
    slurm: Slurm = Slurm()
    tpu_vm: TpuVm = TpuVm()
    xpk: Xpk = Xpk()

    def __post_init__(self) -> None:
        _check_common(self)
        if self.target == "slurm":
            _check_slurm(self)
        elif self.target == "gcloud-tpu":
            _check_tpu(self)
        elif self.target == "xpk":
            _check_xpk(self)

    @property
    def job_name(self) -> str:
        """The given name, or the config's: `bible_gpt.py:runlocal` makes bible-gpt-runlocal."""
        path, _, argument = self.config.partition(":")
        words = f"{pathlib.PurePath(path).stem} {argument}".lower()
        return self.name or re.sub(r"[^a-z0-9]+", "-", words).strip("-")

    @property
    def place(self) -> str:
        """Folder of the code where it runs."""
        if self.target == "gcloud-tpu":
            home = self.tpu_vm.checkout
            return f"{home}/{self.parcel.name}" if self.parcel else home
        if self.target == "slurm" and self.parcel:
            return f"{self.parcels}/{self.parcel.name}"
        return "."

    @property
    def parcels(self) -> str:
        """Folder that parcels are written to, on a file system that the nodes share."""
        return self.code or f"{self.workdir}/code"

    @property
    def interpreter(self) -> str:
        """What runs Python there."""
        if self.python or self.parcel is None:
            return self.python or "python"
        return f"{self.place}/env/bin/python" if self.target == "slurm" else "env/bin/python"

    def command(self, *more: str) -> list[str]:
        """The command that runs the config, the same for every target.

        >>> job = LaunchSettings("configs/mnist5k.py", "runs/x", overrides=(("top_k", 5),))
        >>> job.command()[4:]
        ['--config=configs/mnist5k.py', '--config.top_k=5', '--workdir=runs/x']
        """
        config, safe = self.config, []
        if self.parcel and self.target == "slurm":
            # Started in another folder than the code's, whose modules are not to be imported.
            config, safe = f"{self.place}/{self.config}", ["-P"]
        return [
            *(self.interpreter, *safe, "-m", "stride_jax", "run", f"--config={config}"),
            *(f"--config.{key}={mounted(value, self.mounts)}" for key, value in self.overrides),
            *(f"--workdir={mounted(self.workdir, self.mounts)}", *more),
        ]

    def buckets(self) -> dict[str, str]:
        """The folder of every bucket that the job reads or writes."""
        return buckets([self.workdir, *(value for _, value in self.overrides)], self.mounts)


def _check_common(settings: LaunchSettings) -> None:
    path = settings.config.partition(":")[0]
    if settings.target not in TARGETS:
        raise ValueError(f"target={settings.target!r} is not one of {', '.join(TARGETS)}")
    if not pathlib.Path(path).is_file():
        raise ValueError(f"config={path!r} is not a file: start from the folder that has configs/")
    _check_addresses(settings)
    _at_least(1, processes=settings.processes)
    _at_least(0, max_restarts=settings.max_restarts)
    if settings.processes > 1 and settings.target != "local":
        raise ValueError(
            f"processes={settings.processes} is for target=local: slurm takes nodes and "
            "gpus_per_node, xpk num_slices, and a TPU's number is fixed"
        )


def _check_addresses(settings: LaunchSettings) -> None:
    """Addresses in buckets are mounted on TPUs; others, and other places, are not."""
    mounts = settings.target in ELSEWHERE
    for key, value in (("workdir", settings.workdir), *settings.overrides):
        if not isinstance(value, str) or (value and "://" not in value):
            continue
        if not value and key == "workdir":
            raise ValueError("workdir='' is not a folder: give one")
        if "://" in value and not mounts:
            raise ValueError(
                f"{key}={value!r} is not a folder: mount the bucket and give the folder, or launch "
                "by gcloud-tpu or xpk, whose workers mount gs:// themselves"
            )
        if "://" in value and not ADDRESS.fullmatch(value):
            raise ValueError(
                f"{key}={value!r} is no address in a bucket of Google Cloud: give "
                "gs://bucket/folder, or the folder where it is mounted"
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


def _check_tpu(settings: LaunchSettings) -> None:
    _need("gcloud-tpu", tpu_name=settings.tpu_vm.tpu_name, zone=settings.tpu_vm.zone)
    if not _FILE_NAME.fullmatch(settings.job_name):
        raise ValueError(
            f"name={settings.job_name!r} can't name the job's files: give --name of letters, "
            "digits, dots, hyphens and underscores"
        )
    workdir = mounted(settings.workdir, settings.mounts)
    if settings.parcel and not pathlib.PurePosixPath(workdir).is_absolute():
        raise ValueError(
            f"workdir={settings.workdir!r} would be a folder of its own on every worker: give "
            "gs://bucket/folder, or the whole path of a folder that they share"
        )


def _check_xpk(settings: LaunchSettings) -> None:
    xpk = settings.xpk
    _need("xpk", cluster=xpk.cluster, tpu_type=xpk.tpu_type)
    if settings.parcel is None:
        _need("xpk", docker_image=xpk.docker_image)
    _at_least(1, num_slices=xpk.num_slices)
    if not _XPK_NAME.fullmatch(settings.job_name):
        raise ValueError(
            f"name={settings.job_name!r} is no name of a workload: give --name, at most 40 small "
            "letters, digits and inner hyphens, a letter first"
        )
    if settings.buckets() and not xpk.storage:
        raise ValueError(
            "target=xpk reads buckets as storages of its cluster: give --storage, once attached by "
            + "; ".join(attaching(*own, xpk.where) for own in settings.buckets().items())
        )
    if not pathlib.PurePosixPath(mounted(settings.workdir, settings.mounts)).is_absolute():
        raise ValueError(
            f"workdir={settings.workdir!r} would be lost with the container: give the absolute "
            "path of a folder in a mounted storage (--storage)"
        )


def _flags(**given: str) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items() if value]


def _need(target: str, **given: str) -> None:
    for key, value in given.items():
        if not value:
            raise ValueError(f"target={target} needs --{key}: give one")


def _at_least(least: int, **given: int) -> None:
    for key, value in given.items():
        if value < least:
            raise ValueError(f"{key}={value} must be at least {least}")
