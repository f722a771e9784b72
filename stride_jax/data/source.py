"""From a TFDS name to arrays in memory, read by grain."""

import dataclasses
import importlib
import os
from typing import Any

import numpy as np

from stride_jax.data.quiet import quiet
from stride_jax.examples import Examples

_OURS = {
    "mnist5k": ("builders", "Mnist5k"),
    "digits8x8": ("builders", "Digits8x8"),
    "breast_cancer": ("builders", "BreastCancer"),
    "fashion_mnist50k": ("fashion", "FashionMnist50k"),
}
"""Names of our datasets; module and class of their builders. The modules import TFDS and Pillow."""


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The dataset to attribute, and its splits.

    Attributes:
      name: `mnist5k`, `digits8x8`, `breast_cancer`, `fashion_mnist50k` (fetched by `make data`), or
        any TFDS name with features `label` and `image` or `features` (a table's row).
      train, calibration, query: TFDS split of each role, or a slice such as `test[:400]`.
    """

    name: str = "mnist5k"
    train: str = "train"
    calibration: str = "calibration"
    query: str = "query"


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    if name in _OURS:
        module, builder = _OURS[name]
        ours = importlib.import_module(f"stride_jax.data.{module}")
        return getattr(ours, builder)(data_dir=data_dir, file_format="array_record")
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"no dataset {name!r}: use one of {sorted(_OURS)} or the name of a TFDS dataset"
        ) from error


def _read(builder: Any, split: str, column: str) -> Examples:
    import grain

    try:
        source = builder.as_data_source(split)
    except ValueError as error:
        raise ValueError(
            f"split {split!r} of {builder.name}: {error}; use one of {sorted(builder.info.splits)}"
        ) from error
    batches = list(grain.MapDataset.source(source).batch(512))
    inputs = np.concatenate([batch[column] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches]).astype(np.int32)
    return Examples(inputs, labels)


def _scaled(splits: dict[str, Examples]) -> dict[str, Examples]:
    """Bytes to [0, 1]; a table's columns to mean 0 and deviation 1 over the training split."""
    raw = splits["train"].inputs
    if raw.dtype == np.uint8:
        shift, scale = np.float32(0), np.float32(255)
    else:
        shift, scale = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-12)
    return {
        role: dataclasses.replace(e, inputs=((e.inputs - shift) / scale).astype(np.float32))
        for role, e in splits.items()
    }


def load_splits(
    settings: DataSettings, data_dir: str | os.PathLike[str]
) -> tuple[dict[str, Examples], int]:
    """Prepare the dataset once as array_record, then read its three splits.

    Args:
      settings: dataset and splits.
      data_dir: folder of prepared datasets.

    Returns:
      `{"train", "calibration", "query"}`, images scaled to [0, 1] and tables standardised, and the
      number of classes.

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
        builder.download_and_prepare(file_format="array_record")
        splits = {
            role: _read(builder, getattr(settings, role), column)
            for role in ("train", "calibration", "query")
        }
    return _scaled(splits), features["label"].num_classes
