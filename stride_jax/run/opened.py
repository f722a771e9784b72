"""A run that was made before, opened to be asked."""

import pathlib
import shlex

from stride_jax.run.pipeline import Run
from stride_jax.run.settings import read_run_settings
from stride_jax.runtime import checkpoint
from stride_jax.runtime.progress import Progress, silent

_NEEDED = ("model", "operators")
"""Stages whose checkpoints an answer reads."""


def open_run(workdir: pathlib.Path, text: bool = True, progress: Progress = silent) -> Run:
    """The run that wrote a folder, ready to be asked.

    Args:
      workdir: its folder.
      text: whether it must be of text.
      progress: bars of its loops.

    Raises:
      ValueError: no such run was made there, or its model or operators are not there yet.
    """
    settings = read_run_settings(workdir)
    if text and not settings.is_text:
        raise ValueError(
            f"the run in {workdir} is not of text: there is nothing to ask it; stride-jax serve "
            "takes questions to runs of images and tables"
        )
    run = Run(settings, workdir, progress)
    if missing := missing_stages(run):
        config = workdir / "settings.json"
        words = ["stride-jax", "run", f"--config={config}", f"--workdir={workdir}"]
        raise ValueError(
            f"the run in {workdir} has no {' and no '.join(missing)} yet: make them with "
            f"{shlex.join(words)} --until=operators"
        )
    return run


def missing_stages(run: Run) -> list[str]:
    """Stages that an answer needs and whose product is not finished."""
    return [name for name in _NEEDED if checkpoint.latest(run.products.path(name)) is None]
