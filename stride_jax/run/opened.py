"""A run of text that was made before, opened to be asked."""

import pathlib
import shlex

from stride_jax.run.pipeline import Run
from stride_jax.run.settings import read_run_settings
from stride_jax.runtime import checkpoint

_NEEDED = ("model", "operators")
"""Stages whose checkpoints an answer reads."""


def open_run(workdir: pathlib.Path) -> Run:
    """The run that wrote a folder, ready to be asked.

    Raises:
      ValueError: no run of text was made there, or its model or operators are not there yet.
    """
    settings = read_run_settings(workdir)
    if not settings.is_text:
        raise ValueError(f"the run in {workdir} is not of text: there is nothing to ask it")
    run = Run(settings, workdir)
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
