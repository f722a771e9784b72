"""What a job needs where it runs: a wheel of one commit, the versions of packages, the config.

    <name>/stride_jax-0.1.0-0g1a2b3c4d5-py3-none-any.whl   its build number is the commit
           constraints.txt                                 versions of the packages
           configs/…                                       the config's folder, or its file alone
           install.sh                                      makes env/ there, once

The name holds the commit and a hash of the config's files, so a parcel never changes.
"""

import dataclasses
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

import stride_jax
from stride_jax.runtime.files import file_digest, fingerprint
from stride_jax.version import __version__

# What a wheel and its environment are made of.
_SOURCES = ("stride_jax", "setup.cfg", "pyproject.toml", "README.md", "constraints.txt")
_EXTRAS = "run,text"
_HERE = pathlib.Path(stride_jax.__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Parcel:
    """What is sent to the workers.

    Attributes:
      commit: name of the wheel's commit; it ends in `changed` where changes are not committed.
      checkout: folder of the repository.
      configs: files of the config, paths from the current folder.
      digest: hash of those files.
      jax_extra: extra of JAX for the chips there, such as `tpu`; none for the CPU.
    """

    commit: str
    checkout: pathlib.Path
    configs: tuple[str, ...]
    digest: str
    jax_extra: str = ""

    @property
    def name(self) -> str:
        """Name of its folder: one for each content."""
        return f"{self.commit}-{self.digest}"

    @property
    def wheel(self) -> str:
        """File name of the wheel."""
        return f"stride_jax-{__version__}-{self.build}-py3-none-any.whl"

    @property
    def contents(self) -> str:
        """What is in its folder, in words."""
        return f"{self.wheel}, constraints.txt, {', '.join(self.configs)}, install.sh"

    @property
    def build(self) -> str:
        """Build number of the wheel, which begins with a digit."""
        return f"0g{self.commit}"


def parcel_of(
    config: str, jax_extra: str = "", changed: bool = False, checkout: pathlib.Path | None = None
) -> Parcel:
    """The parcel of this checkout as it is now; nothing is written.

    Args:
      config: path of the config file, below the current folder.
      jax_extra: extra of JAX.
      changed: whether changes that are not committed are sent too.
      checkout: folder of the repository; this package's by default.

    Raises:
      ValueError: no repository, changes that are not committed, or a config that lies elsewhere.
    """
    configs, checkout = _config_files(config), checkout or _HERE
    try:
        commit = _git(checkout, "rev-parse", "--short=9", "HEAD")
        sent = [*_SOURCES, *_inside(configs, checkout)]
        lines = _git(checkout, "status", "--porcelain", "--", *sent).splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"{checkout} is no git checkout, of which a wheel would be sent: launch from one, or "
            "give --python (--docker_image for xpk), which has the package there"
        ) from error
    if lines and not changed:
        first = lines[0].split(maxsplit=1)[1]
        raise ValueError(
            f"{len(lines)} files differ from commit {commit}, such as {first}: commit them, or "
            "send them as they are with --uncommitted"
        )
    digest = fingerprint([(name, file_digest(name)) for name in configs], jax_extra)[:8]
    if lines:
        tree = _changed_tree(checkout)
        return Parcel(f"{commit}.{tree[:9]}.changed", checkout, configs, digest, jax_extra)
    return Parcel(commit, checkout, configs, digest, jax_extra)


def pack(parcel: Parcel, place: pathlib.Path) -> pathlib.Path:
    """Write a parcel into a folder of its name in `place`; one that is there is taken as it is.

    Args:
      parcel: what is sent.
      place: the folder for parcels.

    Returns:
      The parcel's folder.
    """
    folder = place / parcel.name
    if (folder / "install.sh").exists():  # written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as source:
        tree = parcel.commit.split(".")
        packed = _git_bytes(parcel.checkout, "archive", tree[1] if len(tree) > 1 else tree[0])
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(source, filter="data")
        _wheel(pathlib.Path(source), folder, parcel.build)
        shutil.copy(pathlib.Path(source, "constraints.txt"), folder)
    for name in parcel.configs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name)
    (folder / "install.sh").write_text(install(parcel), encoding="utf-8")
    return folder


def install(parcel: Parcel) -> str:
    """The script that makes the environment `env` beside it, once."""
    jax = f" 'jax[{parcel.jax_extra}]'" if parcel.jax_extra else ""
    return f"""\
#!/usr/bin/env bash
# The environment of commit {parcel.commit}: made by the first that comes, the others wait.
set -euo pipefail
cd "$(dirname "$0")"
exec 9>env.lock
flock 9
if [ -e env/packages.txt ]; then exit; fi
# The versions are those of Python 3.11; uv fetches it where it lacks.
if ! python=$(command -v python3.11); then
  python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.11
  python=$(python3 -m uv python find 3.11)
fi
rm -rf env
"$python" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \\
  './{parcel.wheel}[{_EXTRAS}]'{jax}
env/bin/python -m pip freeze >env/packages.part
mv env/packages.part env/packages.txt
"""


def _config_files(config: str) -> tuple[str, ...]:
    """The config's file and, of a config in a folder, the Python files there and above it."""
    path = pathlib.Path(config.partition(":")[0])
    try:
        path = path.absolute().relative_to(pathlib.Path.cwd())
    except ValueError:
        raise ValueError(
            f"config={str(path)!r} lies outside of this folder, which holds what is sent: start "
            "from the folder that has it"
        ) from None
    folders = list(path.parents)[:-1]  # all but the current one
    beside = [own.as_posix() for folder in folders for own in folder.glob("*.py")]
    return tuple(sorted({path.as_posix(), *beside}))


def _inside(names: tuple[str, ...], checkout: pathlib.Path) -> list[str]:
    """Those of some files that the repository keeps."""
    whole = [pathlib.Path(name).absolute() for name in names]
    inside = [str(path) for path in whole if path.is_relative_to(checkout)]
    return _git(checkout, "ls-files", "--", *inside).splitlines() if inside else []


def _changed_tree(checkout: pathlib.Path) -> str:
    """Git's name of what a wheel is made of, as it lies there, by an index of its own."""
    sources = [name for name in _SOURCES if (checkout / name).exists()]
    with tempfile.TemporaryDirectory() as folder:
        own = {"GIT_INDEX_FILE": f"{folder}/index"}
        _git(checkout, "read-tree", "HEAD", env=own)
        _git(checkout, "add", "--all", "--", *sources, env=own)
        return _git(checkout, "write-tree", env=own)


def _wheel(source: pathlib.Path, folder: pathlib.Path, build: str) -> None:
    words = [
        *("-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *(f"--wheel-dir={folder}", f"--config-settings=--build-option=--build-number={build}"),
    ]
    done = subprocess.run(
        [sys.executable, *words, str(source)],
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"the wheel can't be built ({last}): see `{sys.executable} -m pip wheel --no-deps .`"
        )


def _git(checkout: pathlib.Path, *words: str, env: dict[str, str] | None = None) -> str:
    return _git_bytes(checkout, *words, env=env).decode().rstrip()


def _git_bytes(checkout: pathlib.Path, *words: str, env: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(
        ["git", "-C", str(checkout), *words],
        check=True,
        capture_output=True,
        env=os.environ | (env or {}),
    )
    return done.stdout
