"""Examples as a page shows them: thumbnails in sheets, rows of tables, texts.

Letter of its own: U training examples that are shown.
"""

import base64
import dataclasses
import functools
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from stride_jax.applications.report.documents import documents
from stride_jax.applications.report.queries import Queries, split_texts
from stride_jax.data.source import Scaling, load_scaling
from stride_jax.run.pipeline import Run

SHEET = 256
"""Thumbnails of a sheet, in rows of 16."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """The examples of a report.

    Attributes:
      rows: of the training set, ascending, `[U]`.
      columns: `{name: of each example}`, and of images the sheets that hold them.
      queries: the same of the queries.
      documents: of texts, `{training row: text}` of what surrounds them.
    """

    rows: np.ndarray
    columns: dict[str, Any]
    queries: dict[str, Any]
    documents: dict[int, str] = dataclasses.field(default_factory=dict)


def shown(run: Run, row_U: np.ndarray, queries: Queries) -> Shown:
    """Training examples of these rows, and queries.

    Args:
      run: whose data they are.
      row_U: training rows, ascending.
      queries: of the page.
    """
    if run.settings.is_text:
        around = documents(run, row_U)
        texts = split_texts(run, "train", row_U) | {"reach": around.reach}
        return Shown(row_U, _names(run, row_U) | texts, queries.texts, around.said)
    train = np.asarray(run.train.take(row_U).inputs) if len(row_U) else run.train.inputs[:0]
    asked = [np.asarray(own.examples[0].inputs) for own in queries.asked]
    query = np.concatenate(asked) if asked else run.query.inputs[:0]
    drawn = _images(train, query) if query.ndim == 4 else _tables(run, train, query)
    return Shown(row_U, _names(run, row_U) | drawn[0], drawn[1])


def _names(run: Run, rows: np.ndarray) -> dict[str, Any]:
    if not len(rows):
        return {"id": [], "row": []}
    own = run.train.take(rows)
    names: dict[str, Any] = {"id": [str(i) for i in own.ids], "row": rows.tolist()}
    labels = np.asarray(own.labels)
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        names["label"] = labels.tolist()
    elif not run.settings.is_text:
        names["target"] = np.round(labels.reshape(len(labels), -1), 4).tolist()
    return names


# ── images ───────────────────────────────────────────────────────────────────────────────────────


def _images(*both: np.ndarray) -> list[dict[str, Any]]:
    """Sheets of thumbnails of each set, all on one scale of grey."""
    low = min((float(v.min()) for v in both if v.size), default=0.0)
    high = max((float(v.max()) for v in both if v.size), default=1.0)
    scale = 255 / (high - low if high > low else 1.0)
    return [
        {"size": list(own.shape[1:3]), "sheets": list(_sheets((own - low) * scale))} for own in both
    ]


def _sheets(images: np.ndarray) -> Iterator[str]:
    """PNG files in base64, of images of 0 … 255 `[n, H, W, channels]`."""
    from PIL import Image

    for first in range(0, len(images), SHEET):
        some = np.rint(images[first : first + SHEET]).astype(np.uint8)
        count, height, width, channels = some.shape
        rows = -(-count // 16)
        sheet = np.zeros((rows * 16, height, width, channels), np.uint8)
        sheet[:count] = some
        grid = sheet.reshape(rows, 16, height, width, channels).transpose(0, 2, 1, 3, 4)
        grid = grid.reshape(rows * height, 16 * width, channels)
        file = io.BytesIO()
        Image.fromarray(grid[..., :3] if channels >= 3 else grid[..., 0]).save(file, "PNG")
        yield base64.b64encode(file.getvalue()).decode()


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def _tables(run: Run, *both: np.ndarray) -> list[dict[str, Any]]:
    """Rows of numbers with three digits, in the data set's own units; each column's deviation."""
    scaling, spread = _units(run)
    rows = [own.reshape(len(own), math.prod(own.shape[1:])) for own in map(scaling.undo, both)]
    return [
        {"values": [[float(f"{v:.4g}") for v in row] for row in own], "spread": spread}
        for own in rows
    ]


@functools.lru_cache(maxsize=1)
def _units(run: Run) -> tuple[Scaling, list[float]]:
    """Held, as every question to a server needs them: the scaling, and each column's deviation."""
    scaling = load_scaling(run.settings.data, run.workdir / "data")
    rows = scaling.undo(np.asarray(run.train.inputs)).reshape(len(run.train), -1)
    return scaling, [float(f"{v:.3g}") for v in rows.std(axis=0)]
