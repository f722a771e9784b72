"""Products of a run's stages: files that are named by everything they depend on.

A product's name is a hash of its stage's settings and of the stages before it, so it is reused
exactly when its inputs have not changed. Inside, a note says what it is and the digests of what it
was made from, so a file swapped for another whole one is told.
"""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stride_jax.runtime import processes
from stride_jax.runtime.digests import parameters_fingerprint
from stride_jax.runtime.files import (
    UnreadableFileError,
    fingerprint,
    naming,
    read_arrays,
    reading,
    write_arrays,
)
from stride_jax.version import __version__

Arrays = dict[str, np.ndarray]


class _Read(Arrays):
    """Arrays of a file; what is asked for and not there is an error of the file."""

    def __init__(self, arrays: Arrays, path: pathlib.Path, stage: str) -> None:
        super().__init__(arrays)
        self._path, self._stage = path, stage

    def __missing__(self, name: str) -> np.ndarray:
        raise UnreadableFileError(
            f"{self._path} lacks {name!r}, so it is no product of the stage {self._stage!r}: "
            f"{_remedy(self._stage)}"
        )


def _remedy(stage: str) -> str:
    return f"remove it to have the stage {stage!r} run again"


class Products:
    """Files of one run, and the seconds of each stage.

    Args:
      workdir: a folder, with one folder per stage in it.
      inputs: `{stage: (its settings, the stages it needs)}`, from `stages.inputs`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        inputs: Mapping[str, tuple[Any, tuple[str, ...]]],
    ) -> None:
        self.workdir = pathlib.Path(workdir)
        self.seconds: dict[str, float] = {}
        self._inputs = inputs
        self._digests: dict[str, str] = {}

    def key(self, stage: str) -> str:
        """Hash of a stage's settings and of everything before it."""
        settings, needs = self._inputs[stage]
        return fingerprint(__version__, stage, settings, [self.key(need) for need in needs])

    def path(self, stage: str) -> pathlib.Path:
        """Path of a stage's product, without its suffix."""
        return self.workdir / stage / self.key(stage)

    def note(self, stage: str) -> dict[str, Any]:
        """What a product holds of itself: its stage, its key, and digests of what it is made from.

        Those are of the products in the workdir that this process read or wrote.
        """
        needs = self._inputs[stage][1]
        known = {need: self._digests[need] for need in needs if need in self._digests}
        return {"stage": stage, "key": self.key(stage), "made_from": known}

    def loaded(self, stage: str, *arrays: np.ndarray | str) -> None:
        """Remember what was read for a stage whose files are others'."""
        self._digests[stage] = fingerprint(*arrays)

    def restored(self, stage: str, config: Mapping[str, Any], tree: Any) -> None:
        """Check and remember a product that is a checkpoint.

        Args:
          stage: its name.
          config: what was stored beside it: its seconds, and a note unless an earlier version
            wrote it.
          tree: its arrays.
        """
        with naming(self.path(stage), "a product", _remedy(stage)):
            self.seconds[stage] = float(config["seconds"])
            if "note" in config:
                self._check(stage, config["note"])
        self._digests[stage] = parameters_fingerprint(tree)

    def _check(self, stage: str, stored: Mapping[str, Any]) -> None:
        """Refuse a product that is another one's, or was made from others than are here.

        Args:
          stage: name of the stage.
          stored: the note that was read with it.

        Raises:
          UnreadableFileError: names the file and the remedy.
        """
        own, path, remedy = self.note(stage), self.path(stage), _remedy(stage)
        if (stored["stage"], stored["key"]) != (stage, own["key"]):
            raise UnreadableFileError(
                f"{path}* holds the product {stored['stage']}/{stored['key']}: it was moved here; "
                f"{remedy}"
            )
        for need, digest in own["made_from"].items():
            if stored["made_from"].get(need, digest) != digest:
                raise UnreadableFileError(
                    f"{path}* was made from another {need} than {self.path(need)}* holds now: one "
                    f"of the two was swapped; {remedy}"
                )

    def partial(self, stage: str) -> pathlib.Path:
        """Folder of a stage's unfinished work."""
        return self.path(stage).with_suffix(".partial")

    def forget(self, stage: str) -> None:
        """Remove a stage's unfinished work, once every process has its product."""
        processes.wait(f"{stage} written")
        self.tidy(stage)

    def tidy(self, stage: str) -> None:
        """Remove a stage's unfinished work, also work left by a kill after its product."""
        if processes.leads():
            shutil.rmtree(self.partial(stage), ignore_errors=True)

    def arrays(
        self,
        stage: str,
        compute: Callable[[], Arrays],
        needs: Callable[[], Any],
        together: bool = True,
    ) -> Arrays:
        """A stage's arrays, from its file if it is there.

        Args:
          stage: name of the stage.
          compute: function that computes them.
          needs: function that loads their inputs, outside of the measured seconds.
          together: whether all processes compute the same arrays, which the first one writes;
            otherwise the first one works alone.

        Raises:
          UnreadableFileError: the file is torn; names it and the remedy.
        """
        path = self.path(stage).with_suffix(".npz")
        if path.exists():
            try:
                arrays = read_arrays(path)
            except UnreadableFileError as error:
                raise UnreadableFileError(
                    f"{error}; it is the product of the stage {stage!r}: remove it to have the "
                    "stage run again"
                ) from error
            with reading(path, "a product", _remedy(stage)):
                if "note" in arrays:  # earlier versions wrote none
                    self._check(stage, json.loads(str(arrays.pop("note"))))
                arrays = _Read(arrays, path, stage)
                arrays["seconds"] = np.array(float(arrays["seconds"]))
            self.tidy(stage)
        else:
            needs()
            began = time.monotonic()
            arrays = compute()
            arrays["seconds"] = np.array(time.monotonic() - began)
            if processes.leads():
                write_arrays(path, **arrays, note=json.dumps(self.note(stage)))
            if together:
                self.forget(stage)
        self.seconds[stage] = float(arrays.pop("seconds"))
        parts = [part for name in sorted(arrays) for part in (name, arrays[name])]
        self._digests[stage] = fingerprint(*parts)
        return arrays
