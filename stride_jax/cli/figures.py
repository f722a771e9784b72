"""Pictures of a run."""

import os
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import atomic_path

_PROPONENT, _OPPONENT = "#1b7837", "#b2182b"


def _show(axes: Any, image: np.ndarray, title: str, colour: str = "black") -> None:
    axes.imshow(image.squeeze(), cmap="gray_r")
    axes.set_title(title, fontsize=8, color=colour, pad=3)


def proponents(run: Run, path: str | os.PathLike[str], rows: int = 8, columns: int = 5) -> None:
    """For a few queries: image, prediction, strongest proponents and opponents.

    Half of the rows are the queries the model gets most wrong, the others are spread over classes.
    """
    logits = np.asarray(run.tapped(run.model.params, jnp.asarray(run.query.inputs))[0])
    truth, guess = run.query.labels, logits.argmax(axis=1)
    probability = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    of_truth = probability[np.arange(len(truth)), truth]
    rows = min(rows, len(truth))
    wrong = list(np.argsort(of_truth)[: rows // 2])
    rest = [int(np.flatnonzero(truth == c)[0]) for c in np.unique(truth)]
    chosen = (wrong + [i for i in rest if i not in wrong] + list(range(len(truth))))[:rows]
    place = {str(name): i for i, name in enumerate(run.train.ids)}
    result = run.attribution()

    figure = Figure(figsize=(1.05 * (2 * columns + 1) + 0.4, 1.28 * rows + 0.6))
    # A narrow empty column sets the query apart from its proponents, and those from opponents.
    widths = [1.0, 0.25] + [1.0] * columns + [0.25] + [1.0] * columns
    grid = figure.subplots(rows, len(widths), width_ratios=widths, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, query in enumerate(chosen):
        _show(
            grid[row, 0],
            run.query.inputs[query],
            f"is {truth[query]}, says {guess[query]}",
            "black" if truth[query] == guess[query] else _OPPONENT,
        )
        name = str(run.query.ids[query])
        sides = [
            (result.proponents(name, columns), _PROPONENT, 2),
            (result.opponents(name, columns), _OPPONENT, columns + 3),
        ]
        for pairs, colour, start in sides:
            for column, (train_id, score) in enumerate(pairs):
                i = place[train_id]
                label = f"{run.train.labels[i]}: {score:+.2g}"
                _show(grid[row, start + column], run.train.inputs[i], label, colour)
    figure.text(0.03, 0.985, "query", va="top", weight="bold")
    figure.text(0.30, 0.985, "proponents (label: score)", va="top", color=_PROPONENT, weight="bold")
    figure.text(0.68, 0.985, "opponents (label: score)", va="top", color=_OPPONENT, weight="bold")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.01, hspace=0.35, wspace=0.08)
    with mpl.rc_context({"savefig.dpi": 150}), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
