"""From a TFDS name to arrays in memory, read by grain."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
from typing import Any

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


def _scaled(splits: dict[str, Examples]) -> dict[str, Examples]:
    """Bytes to [0, 1]; columns and numbers to mean 0 and deviation 1 over the training split.

    Labels that are all 0 or 1 are there or not, and stay as they are.
    """
    train = splits["train"]
    inputs = (0.0, 255.0) if train.inputs.dtype == np.uint8 else _moments(train.inputs)
    classes, labels = train.labels.dtype.kind in "iu", (0.0, 1.0)
    if not classes and not np.isin(train.labels, (0, 1)).all():
        labels = _moments(train.labels)

    def scaled(values: np.ndarray, shift: Any, scale: Any) -> np.ndarray:
        return ((values - np.float32(shift)) / np.float32(scale)).astype(np.float32)

    return {
        role: dataclasses.replace(
            e,
            inputs=scaled(e.inputs, *inputs),
            labels=e.labels if classes else scaled(e.labels, *labels),
        )
        for role, e in splits.items()
    }


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
    builder = _builder(settings.name, os.fspath(data_dir))
    features = builder.info.features
    column = "image" if "image" in features else "features"
    if missing := {column, "label"} - set(features):
        raise ValueError(
            f"dataset {settings.name!r} lacks {sorted(missing)} and has {sorted(features)}: use "
            "one with 'label' and 'image' or 'features'"
        )
    with quiet():
        with preparing(builder.data_dir):
            builder.download_and_prepare(file_format="array_record")
        splits = {
            role: _read(builder, getattr(settings, role), column)
            for role in ("train", "calibration", "query")
        }
    return _scaled(splits), _width(features["label"])
