"""Licences and sizes of everything that the package brings along, as a page.

    python -m benchmarks.licences

Follows the requirements of `stride-jax` and of its extras through the installed packages, and
writes `docs/licences.md`: what their own metadata say. A package that says nothing is named so.
"""

import importlib.metadata
import pathlib
import re
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement

from benchmarks.house import ROOT, command
from stride_jax.cli.doors import Parser
from stride_jax.runtime.files import write_text

EXTRAS = ("", "run", "text", "serve")
"""Extras whose packages users get; the others are for development and peers."""

_LONG = 60


def brought_by(extra: str) -> dict[str, importlib.metadata.Distribution]:
    """Packages by name that an extra brings, those of the package itself for ""."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [("stride-jax", {extra} if extra else {""})]
    while waiting:
        name, extras = waiting.pop()
        for one in _requirements(name, extras):
            key = re.sub(r"[-_.]+", "-", one.name).lower()
            if key in found:
                continue
            try:
                found[key] = importlib.metadata.distribution(one.name)
            except importlib.metadata.PackageNotFoundError:
                continue  # of another platform
            waiting.append((one.name, one.extras or {""}))
    return found


def _requirements(name: str, extras: set[str]) -> Iterator[Requirement]:
    for line in importlib.metadata.requires(name) or []:
        one = Requirement(line)
        marker = one.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield one


def licence_of(own: importlib.metadata.Distribution) -> str:
    """What a package's metadata say of its licence, in a few words."""
    told = own.metadata.json
    if expression := told.get("license_expression"):
        return str(expression)
    named = [line.rpartition(" :: ")[2] for line in told.get("classifier", [])
             if line.startswith("License ::") and not line.endswith("OSI Approved")]  # fmt: skip
    text = str(told.get("license", "")).strip().partition("\n")[0]
    return ", ".join(named) or text[:_LONG] or "not said"


def size_of(own: importlib.metadata.Distribution) -> float:
    """Megabytes of a package's files."""
    paths = (pathlib.Path(str(file.locate())) for file in own.files or [])
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main(words: Sequence[str]) -> None:
    """Write the page."""
    Parser("licences", __doc__).read(words)
    lines, seen, sizes = [], set[str](), dict.fromkeys(EXTRAS, 0.0)
    for extra in EXTRAS:
        for name, own in sorted(brought_by(extra).items()):
            if name in seen:
                continue
            seen.add(name)
            size = size_of(own)
            sizes[extra] += size
            cells = (name, own.version, licence_of(own), extra or "always", f"{size:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
    total = ", ".join(f"`{name or 'stride-jax'}` {size:.0f} MB" for name, size in sizes.items())
    write_text(
        ROOT / "docs/licences.md",
        "# Licences and sizes of dependencies\n\nAs the packages' own metadata say; written by "
        "`python -m benchmarks.licences`. stride_jax itself is under\nApache-2.0. What each extra "
        f"adds on disk: {total}.\n\n| package | version here | licence | comes with | MB |\n"
        "|---|---|---|---|---|\n" + "\n".join(lines) + "\n",
    )  # fmt: skip


if __name__ == "__main__":
    command(main, "licences")
