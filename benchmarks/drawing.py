"""One style for all pictures of figures.

STRIDE is green with filled marks, others are grey with open ones, so that no meaning hangs on
colour alone.
"""

import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stride_jax.runtime.files import atomic_path

OURS, OTHERS, BOUND = "#1b7837", "#555555", "#b2182b"


def blank(title: str, size: tuple[float, float] = (8, 4.5)) -> tuple[Figure, Axes]:
    """A figure of the house's style, and its axes."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
