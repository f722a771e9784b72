"""A run's settings, and the folder they own."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from stride_jax.data import DataSettings, TextSettings, VerseSettings
from stride_jax.evaluation import BankSettings
from stride_jax.index import StrideSettings
from stride_jax.models import ModelSettings, TrainSettings
from stride_jax.runtime import durable, processes
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import plain, read_json, write_json
from stride_jax.runtime.settings import build


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """One run, from data to summary.

    Attributes:
      data: dataset and splits.
      text: in place of `data`, for language models.
      verses: in place of `text`, for verse retrieval.
      facts: made-up sentences planted in the text, each asked for in place of the queries.
      model: architecture.
      train: recipe of the base model and of the bank's models.
      num_checkpoints: of the base model along its training, the last one the model itself.
      stride: the method.
      bank: ground truth.
      top_k: proponents and opponents stored a query; 0 stores every non-zero score.
      mesh: how devices are arranged; like `keep`, it changes results by rounding at most.
      keep: when the state of long loops is written.
    """

    data: DataSettings = DataSettings()
    text: TextSettings | None = None
    verses: VerseSettings | None = None
    facts: int = 0
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    num_checkpoints: int = 5
    stride: StrideSettings = StrideSettings()
    bank: BankSettings = BankSettings()
    top_k: int = 100
    mesh: meshes.MeshSettings = meshes.MeshSettings()
    keep: durable.KeepSettings = durable.KeepSettings()


_OTHERS = ("leaderboard", "retrieval", "plan")
# Settings that change no product, or by rounding at most.
_FREE = ("mesh.", "keep.", "bank.models_at_once")


def run_settings(values: Mapping[str, Any]) -> RunSettings:
    """The settings of a config; its sections for other programs are left out.

    Raises:
      ValueError: an unknown key or a value of the wrong type.
    """
    return build(RunSettings, {name: v for name, v in values.items() if name not in _OTHERS})


class ForeignWorkdirError(ValueError):
    """A folder that holds the products of other settings."""


def _flat(settings: Any) -> dict[str, Any]:
    return flatten_dict(plain(settings), keep_empty_nodes=True, sep=".")


def check_workdir(workdir: pathlib.Path, settings: RunSettings, reuse: bool = False) -> None:
    """Claim a folder for a run, or refuse it.

    Args:
      workdir: the folder.
      settings: of the run.
      reuse: take over a folder of other settings: stages that they do not touch are kept.

    Raises:
      ForeignWorkdirError: it belongs to other settings; names each that differs.
    """
    path, ours = workdir / "settings.json", _flat(settings)
    if path.exists() and not reuse:
        theirs = _flat(read_json(path))
        differ = {
            name
            for name in ours.keys() | theirs.keys()
            if ours.get(name) != theirs.get(name) and not name.startswith(_FREE)
        }
        if differ:
            rows = [f"{n}: {theirs.get(n)!r} there, {ours.get(n)!r} here" for n in sorted(differ)]
            raise ForeignWorkdirError(
                f"{workdir} holds a run of other settings ({'; '.join(rows)}): take another "
                "--workdir, or go on here with --reuse, which keeps the stages that still fit"
            )
    if processes.leads():
        write_json(path, plain(settings))
