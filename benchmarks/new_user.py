"""A new user: from a clone to the first attribution of a model of their own, by the clock.

    python -m benchmarks.new_user

Clones this checkout's commit into a clean folder, makes its environment as `make setup` does, and
runs the first tutorial to its end: its own model, the examples behind a mistake, retraining to
check, wrong labels. Packages come from the index that pip is set to. Then the wheel, built from the
clone, goes into an environment of its own outside any checkout, where `pip check` must be content
and the same model is attributed. Rows go to `docs/results/people.json`.
"""

import pathlib
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence

from benchmarks.house import ROOT, Row, command, record
from benchmarks.report_page import PEOPLE
from stride_jax.cli.doors import Parser

_CODE = """
import jax, numpy as np
from sklearn.datasets import load_digits
import stride_jax
from stride_jax.models import MLP, TrainSettings, fit, initial_params
x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
model = MLP(num_classes=10)
start = initial_params(model, jax.random.key(0), x)
params = fit(lambda p, v: model.apply({"params": p}, v)[0], start, x[:1600], y[:1600],
             np.arange(1600), jax.random.key(1), TrainSettings(epochs=5))
tapped = stride_jax.from_model(model)
index = stride_jax.fit(tapped, params, x[:1600], y[:1600])
top = stride_jax.attribute(tapped, params, index, x[1600:1608], y[1600:1608]).top(3)
assert len(top) == 48 and "site-packages" in stride_jax.__file__
"""


def _call(*words: object, cwd: pathlib.Path) -> None:
    own = [str(word) for word in words]
    done = subprocess.run(own, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(own)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _fails(*words: object, cwd: pathlib.Path) -> bool:
    try:
        _call(*words, cwd=cwd)
    except RuntimeError as error:
        print(error)
        return True
    return False


def main(words: Sequence[str]) -> None:
    """Clone, set up, attribute; build, install, attribute."""
    Parser("new_user", __doc__).read(words)
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        began = time.monotonic()
        _call("git", "clone", "--quiet", ROOT, "stride_jax", cwd=home)
        clone = home / "stride_jax"
        _call("make", "setup", f"PYTHON={sys.executable}", cwd=clone)
        ready = time.monotonic()
        python = clone / ".venv/bin/python"
        _call(python, "docs/tutorials/classifier.py", cwd=clone)
        done = time.monotonic()
        _call(python, "-m", "build", "--outdir", home / "dist", cwd=clone)
        (wheel,) = (home / "dist").glob("*.whl")
        venv.create(home / "own", with_pip=True)
        pip = (home / "own/bin/python", "-m", "pip", "--disable-pip-version-check")
        own, config = home / "own/bin", clone / "configs/mnist5k.py"
        small = f"--config={config}:runlocal"
        # The config imports its neighbours from the checkout; the package is the wheel's.
        faults = [
            _fails(*pip, "install", "-c", clone / "constraints.txt", f"{wheel}[run]", cwd=home),
            _fails(*pip, "check", cwd=home),
            _fails(own / "python", "-c", _CODE, cwd=home),
            _fails(
                own / "stride-jax", "run", small, "--workdir=x", "--config.bank=None", cwd=clone
            ),
        ]
    record([
        Row("new user, seconds from clone to an environment", ready - began, "lower"),
        Row("new user, seconds from clone to the end of the first tutorial", done - began, "lower",
            asked=600),
        Row("wheel, outside a checkout: faults of install, pip check, attribution and run",
            sum(faults), "lower", asked=0),
    ], path=PEOPLE)  # fmt: skip


if __name__ == "__main__":
    command(main, "new_user")
