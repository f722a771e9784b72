"""From a TFDS name to arrays in memory, read by grain."""

import contextlib
import dataclasses
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from stride_jax.data import builders
from stride_jax.data.examples import Examples, content_ids

_OURS = {"mnist5k": builders.Mnist5k, "digits8x8": builders.Digits8x8}


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which data to attribute.

    Attributes:
      name: `mnist5k`, `digits8x8`, or any TFDS name with features `image` and `label`.
      train, calibration, query: TFDS split of each role; slices such as `test[:400]` work.
    """

    name: str = "mnist5k"
    train: str = "train"
    calibration: str = "calibration"
    query: str = "query"


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    if name in _OURS:
        return _OURS[name](data_dir=data_dir, file_format="array_record")
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"no dataset {name!r}: use one of {sorted(_OURS)} or a name TFDS knows"
        ) from error


def _read(builder: Any, split: str) -> Examples:
    try:
        source = builder.as_data_source(split)
    except ValueError as error:
        raise ValueError(
            f"split {split!r} of {builder.name}: {error}; it has {sorted(builder.info.splits)}"
        ) from error
    batches = list(grain.MapDataset.source(source).batch(512))
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches]).astype(np.int32)
    ids = content_ids(images, labels)
    return Examples(images.astype(np.float32) / 255, labels, ids)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints, logs and draws a dozen bars for a dataset that takes two seconds."""
    logger = logging.getLogger("absl")
    level = logger.level
    tfds.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


def load_splits(
    settings: DataSettings, data_dir: str | os.PathLike[str]
) -> tuple[dict[str, Examples], int]:
    """Prepare the dataset once as array_record, then read its three splits.

    Args:
      settings: which dataset and splits.
      data_dir: folder of prepared datasets.

    Returns:
      `{"train", "calibration", "query"}` with images scaled to [0, 1], and the number of classes.

    Raises:
      ValueError: unknown dataset or split, or features other than `image` and `label`.
    """
    builder = _builder(settings.name, os.fspath(data_dir))
    features: Any = builder.info.features  # typed as any feature; a dataset's is a dict of them
    if missing := {"image", "label"} - set(features):
        raise ValueError(
            f"dataset {settings.name!r} lacks the features {sorted(missing)}; "
            f"it has {sorted(features)}"
        )
    with _quiet():
        builder.download_and_prepare(file_format="array_record")
        splits = {
            role: _read(builder, getattr(settings, role))
            for role in ("train", "calibration", "query")
        }
    return splits, features["label"].num_classes
