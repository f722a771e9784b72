"""Pictures of a run."""

import os
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stride_jax.applications.report.predictions import predictions
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import atomic_path

_PROPONENT, _OPPONENT = ("#1b7837", "▲", ""), ("#b2182b", "▼", "/////")
"""Colour, mark and hatching: no meaning hangs on colour alone."""


def _show(axes: Any, image: np.ndarray, title: str, colour: str = "black") -> None:
    axes.imshow(image.squeeze(), cmap="gray_r")
    axes.set_title(title, fontsize=6.5, color=colour, pad=3, linespacing=1.25)


def _meter(axes: Any, share: float, look: tuple[str, str, str]) -> None:
    """A bar below an image, as long as its score is beside the row's largest."""
    colour, _, hatch = look
    place = {"transform": axes.transAxes, "clip_on": False}
    inside = "white" if hatch else colour
    bar = Rectangle(
        (0, -0.1), share, 0.05, hatch=hatch, facecolor=inside, edgecolor=colour, linewidth=0.4,
        **place,
    )  # fmt: skip
    axes.add_patch(bar)


def _chosen(told: list[dict[str, Any]], rows: int) -> list[int]:
    """Queries that the model gets most wrong, then the first of each class, then any."""
    wrong = np.argsort([one["p"] for one in told], kind="stable")[: rows // 2].tolist()
    label = np.array([one["label"] for one in told])
    first = [int(np.flatnonzero(label == c)[0]) for c in np.unique(label)]
    return list(dict.fromkeys([*wrong, *first, *range(len(told))]))[:rows]


def proponents(run: Run, path: str | os.PathLike[str], rows: int = 8, columns: int = 5) -> None:
    """For a few queries: image, prediction, strongest proponents and opponents, with their ids.

    Half of the rows are the queries the model gets most wrong, the others are spread over classes.
    """
    told = predictions(run, run.query)
    chosen = _chosen(told, rows)
    place = {str(name): i for i, name in enumerate(run.train.ids)}
    result = run.attribution()

    high = 1.45 * len(chosen) + 0.75
    figure = Figure(figsize=(1.05 * (2 * columns + 1) + 0.9, high))
    # A narrow empty column sets the query apart from its proponents, and those from opponents.
    widths = [1.0, 0.35] + [1.0] * columns + [0.25] + [1.0] * columns
    grid = figure.subplots(len(chosen), len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, query in enumerate(chosen):
        own, name = told[query], str(run.query.ids[query])
        said = f"is {own['label']}, says {own['guess']}{'' if own['right'] else ' ✗'}"
        worth = f"p {own['p']:.2g}, loss {own['loss']:.2g}"
        _show(grid[row, 0], run.query.inputs[query], f"{said}\n{worth}\n{name[:8]}",
              "black" if own["right"] else _OPPONENT[0])  # fmt: skip
        sides = [
            (result.proponents(name, columns), _PROPONENT, 2),
            (result.opponents(name, columns), _OPPONENT, columns + 3),
        ]
        largest = max((abs(score) for pairs, *_ in sides for _, score in pairs), default=1.0)
        for pairs, look, start in sides:
            for axes, (train_id, score) in zip(grid[row, start:], pairs, strict=False):
                i = place[train_id]
                title = f"{look[1]} {score:+.2g}\nclass {run.train.labels[i]}\n{train_id[:8]}"
                _show(axes, run.train.inputs[i], title, look[0])
                _meter(axes, abs(score) / largest, look)
    unit = "nats" if result.unit is not None and result.unit.is_known else "relative"
    figure.suptitle(
        f"Why the model says so: {len(chosen)} of {len(told)} queries, scores {unit}, bars beside "
        "the row's largest", x=0.01, y=1 - 0.08 / high, ha="left", va="top", fontsize=9,
    )  # fmt: skip
    heads = ((0.01, "query", "black"), (0.16, "▲ proponents", _PROPONENT[0]),
             (0.585, "▼ opponents", _OPPONENT[0]))  # fmt: skip
    for x, head, colour in heads:
        figure.text(x, 1 - 0.3 / high, head, va="top", weight="bold", color=colour)
    top = 1 - 0.95 / high
    figure.subplots_adjust(left=0.01, right=0.99, top=top, bottom=0.02, hspace=0.75, wspace=0.08)
    with (
        mpl.rc_context({"savefig.dpi": 150, "hatch.linewidth": 0.4}),
        atomic_path(path) as temporary,
    ):
        figure.savefig(temporary, format="png")
