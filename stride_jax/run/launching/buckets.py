"""Addresses `gs://bucket/folder` as folders of the workers, where gcsfuse mounts the bucket.

A run locks, renames and maps its files, and orbax, Parquet and TensorBoard each open their own: a
folder serves them all, an address none but orbax.
"""

import re
from collections.abc import Iterable
from typing import Any

from stride_jax.run.launching.shell import quoted

ADDRESS = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[^/]+)+/?")
_SCHEME = "gs://"

# Folders can be renamed, as checkpoints are, and what another worker wrote is seen at once.
_OPTIONS = {
    "implicit-dirs": "",
    "rename-dir-limit": "200000",
    "metadata-cache-ttl-secs": "0",
    "metadata-cache-negative-ttl-secs": "0",
}


def mounted(value: Any, mounts: str) -> Any:
    """An address as the path that workers have it at; anything else as it is.

    >>> mounted("gs://bucket/tokens", "/tmp/gcs"), mounted(5, "/tmp/gcs")
    ('/tmp/gcs/bucket/tokens', 5)
    """
    if not isinstance(value, str) or not value.startswith(_SCHEME):
        return value
    return f"{mounts}/{value.removeprefix(_SCHEME)}"


def buckets(values: Iterable[Any], mounts: str) -> dict[str, str]:
    """The folder of every bucket that is named.

    >>> buckets(["gs://b/x", 5, "gs://b/y"], "/tmp/gcs")
    {'b': '/tmp/gcs/b'}
    """
    named = (v for v in values if isinstance(v, str) and v.startswith(_SCHEME))
    names = [value.removeprefix(_SCHEME).partition("/")[0] for value in named]
    return {name: f"{mounts}/{name}" for name in names}


def mounting(folders: dict[str, str]) -> str:
    """Lines of a script that mount the buckets that are not."""
    flags = " ".join(
        f"--{name}={value}" if value else f"--{name}" for name, value in _OPTIONS.items()
    )
    return "".join(
        f"""\
if ! mountpoint -q {quoted(folder)}; then
  mkdir -p {quoted(folder)}
  gcsfuse {flags} \\
    {quoted(bucket)} {quoted(folder)}
fi
"""
        for bucket, folder in folders.items()
    )


def attaching(bucket: str, folder: str, cluster: Iterable[str]) -> str:
    """The command that makes a bucket a storage of an xpk cluster."""
    options = ",".join(f"{name}:{value}" if value else name for name, value in _OPTIONS.items())
    words = [
        *("xpk", "storage", "attach", bucket, "--type=gcsfuse", f"--bucket={bucket}"),
        *(f"--mount-point={folder}", "--readonly=false", "--size=1", "--auto-mount=false"),
        f"--mount-options={options.replace('metadata-cache-', 'metadata-cache:')}",
        *cluster,
    ]
    return " ".join(map(quoted, words))
