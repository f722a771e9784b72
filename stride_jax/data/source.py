"""From a TFDS name to arrays in memory, read by grain."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from stride_jax.data.quiet import naming, preparing, quiet
from stride_jax.examples import Examples
from stride_jax.runtime.files import first_line, reading

_OURS = {
    "mnist5k": ("builders", "Mnist5k"),
    "digits8x8": ("builders", "Digits8x8"),
    "breast_cancer": ("builders", "BreastCancer"),
    "fashion_mnist50k": ("fashion", "FashionMnist50k"),
    "parkinsons": ("boards", "Parkinsons"),
    "spam": ("boards", "Spam"),
    "letters": ("boards", "Letters"),
    "cifar10_test": ("boards", "Cifar10Test"),
    "diabetes": ("numeric", "Diabetes"),
    "linear_numbers": ("numeric", "LinearNumbers"),
    "digit_segments": ("numeric", "DigitSegments"),
}
"""Names of our datasets; module and class of their builders. The modules import TFDS and Pillow."""

# A community's name in front would fetch its code, and arguments behind change the folder.
_NAME = re.compile(r"[A-Za-z]\w*(/[\w+-][\w+.-]*)?(:[\d*]+(\.[\d*]+){2})?", re.ASCII)
_CLASSES, _TFDS = ("pythonClassName", "python_class_name", "type"), "tensorflow_datasets."

_NUMBERS = ("diabetes", "linear_numbers", "digit_segments")
"""Those of them whose labels are numbers."""


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The dataset to attribute, and its splits.

    Attributes:
      name: `mnist5k`, `digits8x8`, `breast_cancer`, `fashion_mnist50k` (fetched by `make data`),
        `parkinsons`, `spam`, `letters`, `cifar10_test` (fetched by `make boards-data`), or any TFDS
        name with features `label` and `image` or `features` (a table's row). With numbers
        as labels: `diabetes`, `linear_numbers`, `digit_segments` (seven labels of each image), or
        a TFDS name whose `label` is a Tensor.
      train, calibration, query: TFDS split of each role, or a slice such as `test[:400]`.
    """

    name: str = "mnist5k"
    train: str = "train"
    calibration: str = "calibration"
    query: str = "query"

    @property
    def has_numbers(self) -> bool | None:
        """Whether labels are numbers; None for data sets that are not ours."""
        return self.name in _NUMBERS if self.name in _OURS else None


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    if not _NAME.fullmatch(name):
        raise ValueError(
            f"dataset {name!r}: use one of {sorted(_OURS)} or the name of a TFDS dataset, which is "
            "dataset[/config][:version]; communities' code is not fetched"
        )
    if name in _OURS:
        module, builder = _OURS[name]
        ours = importlib.import_module(f"stride_jax.data.{module}")
        return getattr(ours, builder)(data_dir=data_dir, file_format="array_record")
    for file in pathlib.Path(data_dir, re.split("[/:]", name)[0]).rglob("features.json"):
        with reading(file, "features of a dataset", "remove its folder"):
            _refuse_imports(json.loads(file.read_text(encoding="utf-8")))
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"no dataset {name!r}: use one of {sorted(_OURS)} or the name of a TFDS dataset"
        ) from error
    except Exception as error:  # of a version that there is not, or of torn files
        raise ValueError(f"dataset {name!r} can't be opened: {first_line(error)}") from error


def _refuse_imports(value: Any) -> None:
    """Refuse names of classes that are not TFDS's own: it imports their modules."""
    if isinstance(value, dict):
        named = [own for key, own in value.items() if key in _CLASSES and isinstance(own, str)]
        if bad := [own for own in named if "." in own and not own.startswith(_TFDS)]:
            raise ValueError(f"it would import {bad[0]!r}")
    inner = value.values() if isinstance(value, dict) else value
    for own in inner if isinstance(value, (dict, list)) else ():
        _refuse_imports(own)


def _read(builder: Any, split: str, column: str) -> Examples:
    import grain

    try:
        source = builder.as_data_source(split)
    except ValueError as error:
        raise ValueError(
            f"split {split!r} of {builder.name}: {error}; use one of {sorted(builder.info.splits)}"
        ) from error
    with naming(builder.data_dir):
        batches = list(grain.MapDataset.source(source).batch(512))
    inputs = np.concatenate([batch[column] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    return Examples(inputs, labels.astype(np.int32) if labels.dtype.kind in "iu" else labels)


class Scaling(NamedTuple):
    """How a data set's numbers become a model's: `(x − shift) / scale`, shift and scale of each.

    Attributes:
      inputs: bytes to [0, 1]; columns to mean 0 and deviation 1 over the training split.
      labels: numbers likewise; those that are all 0 or 1 are there or not, and stay as they are.
        None for classes.
    """

    inputs: tuple[Any, Any]
    labels: tuple[Any, Any] | None

    @classmethod
    def of(cls, train: Examples) -> "Scaling":
        """That of a training split as it was read."""
        inputs = (0.0, 255.0) if train.inputs.dtype == np.uint8 else _moments(train.inputs)
        if train.labels.dtype.kind in "iu":
            return cls(inputs, None)
        there = np.isin(train.labels, (0, 1)).all()
        return cls(inputs, (0.0, 1.0) if there else _moments(train.labels))

    def undo(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs of a model as the data set has them."""
        shift, scale = self.inputs
        return inputs * np.float32(scale) + np.float32(shift)

    def apply(self, examples: Examples) -> Examples:
        """Examples as the model takes them."""
        labels = examples.labels
        return dataclasses.replace(
            examples,
            inputs=scaled(examples.inputs, self.inputs),
            labels=labels if self.labels is None else scaled(labels, self.labels),
        )


def scaled(values: np.ndarray, by: tuple[Any, Any]) -> np.ndarray:
    """`(values − shift) / scale`, float32.

    >>> scaled(np.array([0, 255], np.uint8), (0.0, 255.0)).tolist()
    [0.0, 1.0]
    """
    shift, scale = by
    return ((values - np.float32(shift)) / np.float32(scale)).astype(np.float32)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), np.maximum(values.std(axis=0), 1e-12)


def _width(label: Any) -> int:
    """Classes, or numbers of a label."""
    return getattr(label, "num_classes", None) or int(np.prod(label.shape))


def load_splits(
    settings: DataSettings, data_dir: str | os.PathLike[str]
) -> tuple[dict[str, Examples], int]:
    """Prepare the dataset once as array_record, then read its three splits.

    Args:
      settings: dataset and splits.
      data_dir: folder of prepared datasets.

    Returns:
      `{"train", "calibration", "query"}`, images scaled to [0, 1], tables and numbers standardised,
      and the number of classes, or of numbers in a label: the model's outputs.

    Raises:
      ValueError: unknown dataset or split, or without `label` and `image` or `features`; files of
        a dataset's package that are missing or not the package's.
    """
    builder, column, label = _opened(settings, data_dir)
    with quiet():
        splits = {
            role: _read(builder, getattr(settings, role), column)
            for role in ("train", "calibration", "query")
        }
    scaling = Scaling.of(splits["train"])
    return {role: scaling.apply(own) for role, own in splits.items()}, _width(label)


def load_scaling(settings: DataSettings, data_dir: str | os.PathLike[str]) -> Scaling:
    """How `load_splits` scales these data: for examples that come later.

    Args:
      settings: dataset and splits.
      data_dir: folder of prepared datasets.
    """
    builder, column, _ = _opened(settings, data_dir)
    with quiet():
        return Scaling.of(_read(builder, settings.train, column))


def column_names(settings: DataSettings) -> list[str] | None:
    """Names of a table's columns; None where its package has none, and of other data sets."""
    if settings.name not in _OURS:
        return None
    module, builder = _OURS[settings.name]
    ours = importlib.import_module(f"stride_jax.data.{module}")
    return getattr(ours, builder).names()


def _opened(settings: DataSettings, data_dir: str | os.PathLike[str]) -> tuple[Any, str, Any]:
    """A dataset's builder, prepared, the name of its inputs, and the feature of its labels."""
    builder = _builder(settings.name, os.fspath(data_dir))
    features = builder.info.features
    column = "image" if "image" in features else "features"
    if missing := {column, "label"} - set(features):
        raise ValueError(
            f"dataset {settings.name!r} lacks {sorted(missing)} and has {sorted(features)}: use "
            "one with 'label' and 'image' or 'features'"
        )
    with quiet(), preparing(builder.data_dir):
        builder.download_and_prepare(file_format="array_record")
    return builder, column, features["label"]
