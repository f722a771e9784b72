"""Docstrings cite sections of docs/method.md that exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PLACES = ("stride_jax", "benchmarks", "configs", "experiments", "tests")
CITED = re.compile(r"method(?:\.md)? §(\d+(?:\.\d+)?)(?:–(\d+(?:\.\d+)?))?")


def test_every_cited_section_exists():
    page = (ROOT / "docs/method.md").read_text()
    sections = set(re.findall(r"^(?:## |\*\*)(\d+(?:\.\d+)?)\b", page, re.MULTILINE))
    assert {"1", "5.1", "11"} <= sections
    cited = 0
    for path in (p for place in PLACES for p in (ROOT / place).rglob("*.py")):
        for match in CITED.finditer(path.read_text()):
            cited += 1
            where = f"{path.relative_to(ROOT)}: {match[0]}"
            assert "docs/method.md §" in f"docs/{match[0]}", f"{where}: write docs/method.md §n"
            assert {n for n in match.groups() if n} <= sections, where
    assert cited > 5
