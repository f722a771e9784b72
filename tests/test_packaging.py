"""What `import stride_jax` brings in, and what a wheel of it holds and does elsewhere."""

import json
import os
import pathlib
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What runs, data sets and tables need, and the method does not. What flax, optax and jaxopt load
# themselves (rich, msgpack, absl among it, no orbax) is not ours to leave out.
HEAVY = {
    *("array_record", "datasets", "google", "grain", "matplotlib", "ml_collections", "mlxtend"),
    *("orbax", "pandas", "PIL", "pyarrow", "sklearn", "tensorboardX", "tensorflow_datasets"),
    *("tensorstore", "tokenizers", "torch"),
}
_LOADED = """
import json, sys, warnings
warnings.simplefilter("ignore")
import jax, flax.linen, flax.nnx, optax, jaxopt, numpy, scipy.optimize, scipy.sparse, scipy.special
below = {name.partition(".")[0] for name in sys.modules}
from stride_jax import *
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - below)))
"""


def test_the_package_imports_what_the_method_needs():
    done = subprocess.run([sys.executable, "-c", _LOADED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "stride_jax" in loaded
    assert not loaded & HEAVY
    others = loaded - {"stride_jax", "tqdm", "xxhash"} - set(sys.stdlib_module_names)
    # Private modules of the packages above that they load late.
    assert not {name for name in others if not name.startswith("_")}


def test_settings_and_plans_load_no_data_set():
    """A launcher on a login node reads configs, and a plan needs no data."""
    code = _LOADED.replace("from stride_jax import *", "import stride_jax.cli.plan")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout)) & HEAVY


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, built from this checkout in an environment of their own."""
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--outdir", out, ROOT)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def call(*words, cwd=None, env=None):
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_should(built):
    wheel, sdist = built
    call(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"stride_jax"}
    ours = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "stride_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {name for name in names if "dist-info" not in name} == set(ours)
    assert "stride_jax/py.typed" in ours
    with tarfile.open(sdist) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    assert {"setup.cfg", "configs/mnist5k.py", "tests/test_packaging.py", *ours} <= packed


@pytest.mark.slow
def test_a_release_is_the_same_bytes_each_time(tmp_path):
    """`make dist` in two clones, of which one was touched since."""
    made = []
    for name in ("one", "two"):
        call("git", "clone", "--quiet", ROOT, tmp_path / name)
        (tmp_path / name / ".venv").symlink_to(pathlib.Path(sys.prefix))
        (tmp_path / name / "setup.cfg").touch()
        call("make", "-o", "setup", "dist", cwd=tmp_path / name)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name / "dist").iterdir()})
    assert len(made[0]) == 2
    assert made[0] == made[1]


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "data": {"name": "breast_cancer", "train": "train[:120]", "query": "query[:10]"},
        "model": {"kind": "mlp", "widths": (8,)},
        "train": {"epochs": 1, "batch_size": 32},
        "num_checkpoints": 2,
        "index": {"design": {"num_subsets": 40, "degree": 4}, "basis": {"rank": 8}},
        "bank": {"num_subsets": 4, "num_seeds": 1, "models_at_once": 4},
    })
"""


@pytest.mark.slow
def test_a_fresh_environment_runs_a_config_of_its_own(built, tmp_path):
    wheel, _ = built
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python, command = home / "bin/python", home / "bin/stride-jax"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    # Pins are of what CI runs; another interpreter takes the newest.
    pins = ("-c", ROOT / "constraints.txt") if sys.version_info[:2] == (3, 11) else ()
    call(*pip, *pins, wheel, env=env)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my.py").write_text(CONFIG)
    bare = subprocess.run(
        [command, "run", "--config=my.py", "--workdir=out"], cwd=folder, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bare.returncode == 2
    assert bare.stderr.count("\n") == 1
    assert 'pip install "stride-jax[run]"' in bare.stderr
    call(python, "-c", "import stride_jax; print(stride_jax.fit)", cwd=folder, env=env)

    call(*pip, *pins, f"{wheel}[run]", env=env)
    said = call(command, "run", "--config=my.py", "--workdir=out", cwd=folder, env=env)
    summary = json.loads((folder / "out/summary.json").read_text())
    assert summary["num_train"] == 120
    assert set(summary["methods"]) >= {"stride", "random"}
    assert "too few to rank methods" in said
    assert (folder / "out/attribution.parquet").exists()
    for name in ("experiments", "configs", "benchmarks"):
        assert not list(home.glob(f"lib/python*/site-packages/{name}"))
        gone = subprocess.run([python, "-c", f"import {name}"], cwd=folder, env=env, check=False,
                              capture_output=True)  # fmt: skip
        assert gone.returncode == 1
