"""Packages fetched for their data, unpacked and not installed."""

import json
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from stride_jax.runtime.files import atomic_path


def debian(package: str, home: pathlib.Path) -> pathlib.Path:
    """The folder of a Debian package's files, fetched and unpacked if it is not there."""
    folder = home / package
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", package], cwd=home, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"package {package} could not be fetched ({error}): it is one of Debian 12; give the "
            f"unpacked package as {folder}"
        ) from error
    [archive] = home.glob(f"{package}_*.deb")
    with atomic_path(folder) as place:
        place.unlink(missing_ok=True)
        subprocess.run(["dpkg-deb", "-x", archive, place], check=True)
    archive.unlink()
    return folder


def bigbench(
    home: pathlib.Path, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and contents of some JSON files of `bigbench` 1.0.0's source, in the archive's order.

    Args:
      home: folder of the archive (358 MB), fetched with pip if it is not there.
      wanted: whether a file of this name is read.
    """
    path = home / "bigbench-1.0.0.tar.gz"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        words = ("download", "--no-deps", "--no-binary", ":all:", "bigbench==1.0.0")
        subprocess.run([sys.executable, "-m", "pip", *words, "--dest", str(home)], check=True)
    with tarfile.open(path, "r|gz") as files:
        for member in files:
            if wanted(member.name) and (content := files.extractfile(member)) is not None:
                yield member.name, json.load(content)
