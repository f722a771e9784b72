"""A run's settings, and the folder of its products."""

import dataclasses
import pathlib
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from stride_jax.data import (
    BIBLE_FIELDS,
    DataSettings,
    ShardSettings,
    TextSettings,
    TuningSettings,
    VerseSettings,
)
from stride_jax.evaluation import BankSettings, UnitSettings
from stride_jax.models import ModelSettings, TrainSettings
from stride_jax.near_copies import NearCopySettings
from stride_jax.objectives import named_objective
from stride_jax.run import model_source
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime import processes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import added, plain, read_json, write_json
from stride_jax.runtime.keep import KeepSettings
from stride_jax.runtime.settings import build, check_types
from stride_jax.settings import BM25, IndexSettings, ReadSettings


@dataclasses.dataclass(frozen=True)
class ExecutionSettings:
    """Devices, checkpoints and memory of a run; they change results by rounding at most.

    Attributes:
      mesh: arrangement of the devices.
      keep: when the state of long loops is written.
      memory, batch_size: as in `Execution`.
    """

    mesh: meshes.MeshSettings = meshes.MeshSettings()
    keep: KeepSettings = KeepSettings()
    memory: int = Execution.memory
    batch_size: int = Execution.batch_size

    def __post_init__(self) -> None:
        check_types(self)
        Execution(memory=self.memory, batch_size=self.batch_size)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """One run, from data to summary.

    Attributes:
      data: dataset and splits.
      text: in place of `data`, for language models.
      verses: in place of `text`, for verse retrieval.
      tuning: in place of `text`, prompts with completions, or chats, to fine-tune on.
      shards: in place of `text`, a corpus of any size that `stride-jax prepare` tokenised.
      facts: number of invented sentences planted in the text, which replace the queries.
      near_copies: which training sequences act as one; None for exact copies alone.
      model: architecture, or the weights to start from.
      train: recipe of the base model and of the bank's models; no epochs for a model that is used
        as it is.
      num_checkpoints: checkpoints along the base model's training, the last one the model itself.
      index: settings of the index.
      groups: what training examples are grouped by, one operator for each group besides: `label` of
        a classifier; `document` of a text, or a name in its metadata, such as `book`; none for "".
      read: settings of its reading.
      unit: the trainings that tell what scores are in; None leaves scores relative.
      bank: ground truth; None for a run without evaluation.
      top_k: proponents and opponents stored per query; 0 stores every non-zero score.
      execution: devices, checkpoints and memory.
    """

    data: DataSettings = DataSettings()
    text: TextSettings | None = None
    verses: VerseSettings | None = None
    tuning: TuningSettings | None = added(None)
    shards: ShardSettings | None = added(None)
    facts: int = 0
    near_copies: NearCopySettings | None = None
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    num_checkpoints: int = 5
    index: IndexSettings = IndexSettings()
    groups: str = ""
    read: ReadSettings = ReadSettings()
    unit: UnitSettings | None = None
    bank: BankSettings | None = None
    top_k: int = 100
    execution: ExecutionSettings = ExecutionSettings()

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_checkpoints < 1 or min(self.top_k, self.facts) < 0:
            raise ValueError(
                f"num_checkpoints={self.num_checkpoints}, top_k={self.top_k}, facts={self.facts}: "
                "give at least one checkpoint, and no negative number"
            )
        if not self.train.epochs:
            self._check_as_is()
        if self.train.lora is not None and not self.model.init_from:
            raise ValueError(
                "train.lora fine-tunes a model that is there: name it in model.init_from, or leave "
                "lora out"
            )
        if not self.is_text and (self.near_copies or BM25 in self.read.exact.sources):
            name = "near_copies" if self.near_copies else "read.exact.sources=bm25"
            raise ValueError(f"{name} reads tokens, but this run has no text: leave it out")
        if self.shards is not None:
            self._check_shards()
        if self.tuning is not None and self.facts:
            raise ValueError(
                f"facts={self.facts} plants sentences in a text, and this run is of prompts and "
                "completions (tuning): leave facts out"
            )
        if self.groups:
            self._check_groups()
        self._check_objective()

    def _check_as_is(self) -> None:
        """Refuse what needs training, of a model that is used as it is."""
        if not self.model.init_from:
            raise ValueError("train.epochs=0 trains nothing: give model.init_from, or epochs")
        if self.train.lora is not None:
            raise ValueError(
                "train.lora with train.epochs=0 trains nothing: give epochs, or no lora"
            )
        for name in ("bank", "unit"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} retrains models by the recipe in `train`, but this model is used as "
                    f"it is (train.epochs=0): set {name}=None, or fine-tune it for some epochs"
                )

    def _check_shards(self) -> None:
        """Refuse what would read all of a corpus that is not held."""
        read = {
            "near_copies": self.near_copies, "facts": self.facts, "groups": self.groups,
            "read.exact.sources=bm25": BM25 in self.read.exact.sources,
        }  # fmt: skip
        if asked := [name for name, value in read.items() if value]:
            raise ValueError(
                f"{asked[0]} reads all texts into memory, and shards are made for corpora that do "
                "not fit: leave it out, or give the texts as text={'name': 'files', 'path': …}"
            )

    def _check_groups(self) -> None:
        """Refuse names that the data are known to lack; own files are asked when they are read."""
        known = ("label",)
        if self.verses is not None or self.text is not None:
            known = ("document", *BIBLE_FIELDS)
        files = self.tuning is not None or (
            self.verses is None and self.text is not None and self.text.name == "files"
        )
        if self.groups not in known and not files:
            raise ValueError(
                f"groups={self.groups!r}: examples of this run can be grouped by "
                f"{', '.join(known)}; leave it empty for no groups"
            )
        if self.index.fit == "joint":
            raise ValueError(
                f"groups={self.groups!r}: joint training has no moments; use "
                "index.fit='closed_form'"
            )

    def _check_objective(self) -> None:
        """Refuse a loss that the data or the question are not made for, before anything runs."""
        objective = named_objective(self.train.objective)
        numbers = False if self.is_text else self.data.has_numbers
        source = "text" if self.is_text else f"data.name={self.data.name!r}"
        if numbers is not None and numbers == objective.classes:
            fitting = "squared_error', 'sigmoid' or 'poisson" if numbers else "cross_entropy"
            raise ValueError(
                f"train.objective={objective.name!r} does not fit {source}, whose labels are "
                f"{'numbers' if numbers else 'classes'}: set it to '{fitting}'"
            )
        if self.read.measure.question == "margin" and not objective.classes:
            raise ValueError(
                "read.measure.question='margin' is about classes, but "
                f"train.objective={objective.name!r}: ask for 'loss'"
            )

    @property
    def is_text(self) -> bool:
        """Whether the run is of a language model."""
        return any(own is not None for own in (self.text, self.verses, self.tuning, self.shards))


OTHER_SECTIONS = ("leaderboard", "retrieval", "plan")
"""Sections of a config that other programs read."""

# What a model's section has whatever its kind.
_SOURCE = ("kind", "init_from", "origin")

# Settings that change no product, or by rounding at most; the digest of a model's source counts.
_FREE = ("execution.", "model.init_from", "bank.models_at_once", "unit.models_at_once")


def run_settings(
    values: Mapping[str, Any], from_text: bool | Collection[str] = False, adopt: bool = True
) -> RunSettings:
    """The settings of a config; its sections for other programs are left out.

    Args:
      values: the config.
      from_text: dotted names whose values are a command line's text.
      adopt: whether they are completed by the weights that they start from, which are then read.

    Raises:
      ValueError: an unknown name (lists the known ones) or a value of the wrong type.
    """
    own = {name: value for name, value in values.items() if name not in OTHER_SECTIONS}
    settings = build(RunSettings, own, from_text=from_text)
    return adopted(settings, _flat(own)) if settings.model.init_from and adopt else settings


def adopted(settings: RunSettings, given: Collection[str] | None = None) -> RunSettings:
    """Settings completed by the pre-trained model that they start from.

    Without a recipe (`train`) that model is used as it is; it has one checkpoint unless more are
    asked for.

    Args:
      settings: settings with `model.init_from`.
      given: dotted names that were set; by default those with other values than their defaults.

    Raises:
      ValueError: weights, settings or a tokenizer that don't fit each other.
    """
    if given is None:
        given = model_source.differing(settings)
    below = {name.removeprefix("model.") for name in given if name.startswith("model.")}
    model = model_source.adopt(settings.model, below)
    train, checkpoints = settings.train, settings.num_checkpoints
    if not any(name.partition(".")[0] == "train" for name in given):
        train = dataclasses.replace(train, epochs=0)
    if "num_checkpoints" not in given:
        checkpoints = 1
    if not train.epochs and checkpoints != 1:
        raise ValueError(
            f"num_checkpoints={checkpoints} of a model that is used as it is (train.epochs=0): it "
            "has one; leave the setting out"
        )
    if settings.verses is not None:
        raise ValueError(
            "verses train a tokenizer of their own, which the model in init_from does not read: "
            "use `text`"
        )
    for own in (settings.text, settings.tuning):
        if own is not None:
            model_source.check_tokenizer(model, own.tokenizer)
    if settings.shards is not None:
        tokenizer = pathlib.Path(settings.shards.folder) / "tokenizer.json"
        model_source.check_tokenizer(model, str(tokenizer))
    return dataclasses.replace(settings, model=model, train=train, num_checkpoints=checkpoints)


def used(settings: RunSettings) -> dict[str, Any]:
    """The settings as JSON values, without the sections of parts that this run does not use.

    >>> sorted(used(RunSettings())["model"]), "joint" in used(RunSettings())["index"]
    (['kind', 'widths'], False)
    """
    values = plain(settings)
    kind, index, read = settings.model.kind, values["index"], values["read"]
    sections = {"mlp": ("widths",), "resnet9": ("width",), "gpt": ("gpt",), "llama": ("llama",)}
    values["model"] = {n: v for n, v in values["model"].items() if n in (*_SOURCE, *sections[kind])}
    if settings.index.fit != "joint":
        del index["joint"]
    if settings.read.selection.rule == "fixed":
        del read["selection"]
    if not settings.read.exact.sources:
        del read["exact"]["sources"]
    if not settings.groups:
        del values["groups"]
    if settings.near_copies is None:
        del values["near_copies"]
    # Of the kinds of data one is used.
    kinds = {
        "shards": settings.shards,
        "tuning": settings.tuning,
        "verses": settings.verses,
        "text": settings.text,
        "data": settings.data,
    }
    data = next(name for name, own in kinds.items() if own is not None)
    unused = {*kinds} - {data} | (set() if settings.is_text else {"facts"})
    return {name: v for name, v in values.items() if name not in unused}


SETTINGS = "settings.json"
"""File of a run's settings in its folder."""


class ForeignWorkdirError(ValueError):
    """A folder that holds the products of other settings."""


def check_workdir(workdir: pathlib.Path, settings: RunSettings, reuse: bool = False) -> None:
    """Claim a folder for a run, or refuse it.

    Args:
      workdir: the folder.
      settings: settings of the run.
      reuse: whether a folder of other settings is taken; stages that do not differ are reused.

    Raises:
      ForeignWorkdirError: it belongs to other settings; the message has each that differs.
    """
    if not reuse:
        refuse_foreign(workdir, settings)
    if processes.leads():
        write_json(workdir / SETTINGS, plain(settings))


def refuse_foreign(workdir: pathlib.Path, settings: RunSettings) -> None:
    """Refuse a folder of other settings; nothing is written.

    Args:
      workdir: the folder.
      settings: settings of the run.

    Raises:
      ForeignWorkdirError: it belongs to other settings; the message has each that differs.
    """
    path, ours = workdir / SETTINGS, _flat(used(settings))
    if path.exists():
        theirs = _flat(_known(read_json(path), path))
        differ = {
            name
            for name in ours.keys() | theirs.keys()
            if ours.get(name) != theirs.get(name) and not name.startswith(_FREE)
        }
        if differ:
            rows = [f"{n}: {theirs.get(n)!r} there, {ours.get(n)!r} here" for n in sorted(differ)]
            raise ForeignWorkdirError(
                f"{workdir} holds a run of other settings ({'; '.join(rows)}): take another "
                "--workdir, or continue here with --reuse, which reuses the stages that still fit"
            )


def read_run_settings(workdir: pathlib.Path) -> RunSettings:
    """The settings of the run that a folder holds.

    Raises:
      ValueError: the folder holds no run, or one of another version.
    """
    path = workdir / SETTINGS
    if not path.is_file():
        raise ValueError(
            f"{workdir} holds no run: make one with stride-jax run --config=… "
            f"{shlex.quote(f'--workdir={workdir}')}"
        )
    return _built(read_json(path), path)


def _known(values: Any, path: pathlib.Path) -> dict[str, Any]:
    """A folder's settings without unused sections; whatever is there, where it is of no version."""
    try:
        return used(_built(values, path))
    except ValueError:
        return values if isinstance(values, dict) else {}


def _built(values: Any, path: pathlib.Path) -> RunSettings:
    try:
        return build(RunSettings, values)
    except ValueError as error:
        raise ValueError(f"{path} is not of a run of this version ({error})") from error


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return flatten_dict(values, keep_empty_nodes=True, sep=".")
