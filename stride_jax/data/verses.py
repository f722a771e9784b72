"""Verse retrieval: train on some translations, query with the same verses of another."""

import dataclasses
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

from stride_jax.data import bible, text_files, truths
from stride_jax.data.bible import Verse
from stride_jax.data.documents import Document
from stride_jax.data.packing import pack_documents, tokenise
from stride_jax.data.text import ROLES, TextSplits
from stride_jax.data.text_examples import TextExamples, named, passage_keys
from stride_jax.data.tokens import Tokenizer, train_tokenizer
from stride_jax.runtime.files import fingerprint

Block = tuple[str, int, int]
"""Consecutive verses: book, chapter, number of the block in it."""


@dataclasses.dataclass(frozen=True)
class VerseSettings:
    """The verses to train on, and those to query.

    Attributes:
      translations: translations to train on; every training verse is in each of them.
      query_translation: translation of the queries, another one.
      books: books of the Bible, such as `BOOKS[:16]`; none for all 66.
      verses_per_sequence: consecutive verses of a chapter per training sequence.
      vocab_size: number of token ids, trained on the training sequences' text.
      length: T, tokens per sequence; what exceeds it is cut.
      max_train: largest number of training sequences of all translations together, drawn at
        random.
      num_calibration: number of held-out sequences of the same translations.
      num_query: number of queries, all of whose verses are trained on.
      seed: random seed of the draws.
    """

    translations: tuple[str, ...] = ("kjv", "asv")
    query_translation: str = "web"
    books: tuple[str, ...] = ()
    verses_per_sequence: int = 1
    vocab_size: int = 1024
    length: int = 64
    max_train: int = 8192
    num_calibration: int = 200
    num_query: int = 500
    seed: int = 0


def load_verses(settings: VerseSettings, workdir: str | os.PathLike[str]) -> TextSplits:
    """Splits and truth of verse retrieval, stored at the first call and read back later.

    A sequence is the start of one block of verses, cut or padded to T. A query is one verse of
    another translation; training sequences that hold any of the same verse are its truth.

    Args:
      settings: verses.
      workdir: folder in whose `data` folder results are stored.

    Returns:
      Splits with `truth`.

    Raises:
      ValueError: unknown names, a translation that is both trained on and asked with, or fewer
        verses than are wanted; the message names the remedy.

    Warns:
      UserWarning: some sequences have the same content; given once, when they are packed.
    """
    _check(settings)
    home = pathlib.Path(workdir) / "data"
    version = bible.VERSION
    folder = home / f"verses-{fingerprint(settings, text_files.FORMAT, version)}"
    if not text_files.is_complete(folder):
        names = (*settings.translations, settings.query_translation)
        verses = bible.read_verses(names, home / "tfds", books=settings.books)
        tokenizer, splits = split_verses(verses, settings)
        truths.write_truth(folder / "truth.json", truths.by_key(splits["query"], splits["train"]))
        text_files.write(folder, tokenizer, splits, settings)
    truth = truths.read_truth(folder / "truth.json")
    return TextSplits(**text_files.read(folder, ROLES), folder=folder, truth=truth)


def _check(settings: VerseSettings) -> None:
    if not settings.translations or settings.query_translation in settings.translations:
        raise ValueError(
            f"query_translation={settings.query_translation!r} must not be among translations="
            f"{settings.translations}, which must not be empty"
        )
    least = {"verses_per_sequence": 1, "num_query": 1, "num_calibration": 0}
    for name, smallest in {**least, "max_train": len(settings.translations)}.items():
        if (value := getattr(settings, name)) < smallest:
            raise ValueError(f"{name}={value} must be at least {smallest}")


def split_verses(
    verses: Iterable[Verse], settings: VerseSettings
) -> tuple[Tokenizer, dict[str, TextExamples]]:
    """Draw, tokenise and pack verses; see `load_verses`."""
    rng = np.random.default_rng(settings.seed)
    blocks_of = _blocks(verses, settings.verses_per_sequence)
    train, calibration = _draw(blocks_of, settings, rng)
    tokenizer = train_tokenizer([document.text for document in train], settings.vocab_size)
    bos, length = tokenizer.bos_id, settings.length
    parts = {"train": pack_documents(tokenise(train, tokenizer), length, bos)}
    sources = [document.source for document in train]
    keys = (key for _, key in passage_keys(parts["train"].spans, sources))
    query = _asked(blocks_of, keys, settings, rng)
    for role, documents in (("calibration", calibration), ("query", query)):
        packed = pack_documents(tokenise(documents, tokenizer), length, bos)
        parts[role] = packed.renumbered(len(sources))
        sources += [document.source for document in documents]
    return tokenizer, named(parts, tuple(sources))


def _blocks(verses: Iterable[Verse], size: int) -> dict[str, dict[Block, list[Verse]]]:
    """The verses of each block of `size` consecutive verse numbers, for each translation."""
    blocks_of: dict[str, dict[Block, list[Verse]]] = {}
    for verse in verses:
        block = (verse.book, verse.chapter, (verse.verse - 1) // size)
        blocks_of.setdefault(verse.translation, {}).setdefault(block, []).append(verse)
    return blocks_of


def _draw(
    blocks_of: dict[str, dict[Block, list[Verse]]],
    settings: VerseSettings,
    rng: np.random.Generator,
) -> tuple[list[Document], list[Document]]:
    """Training and calibration documents, of different blocks."""
    trained = [blocks_of[name] for name in settings.translations]
    common = [block for block in trained[0] if all(block in blocks for blocks in trained)]
    if len(common) <= settings.num_calibration:
        raise ValueError(
            f"num_calibration={settings.num_calibration} leaves nothing of the {len(common)} "
            f"blocks of verses that {list(settings.translations)} have in common to "
            "train on: lower it"
        )
    order = rng.permutation(len(common))
    calibration, rest = np.split(order, [settings.num_calibration])
    train = np.sort(rest[: settings.max_train // len(trained)])
    # One translation per block, in turn, so that all are calibrated on alike.
    turns = itertools.cycle(trained)
    held = [next(turns)[common[i]] for i in np.sort(calibration)]
    shown = [blocks[common[i]] for blocks in trained for i in train]
    return [_document(verses) for verses in shown], [_document(verses) for verses in held]


def _document(verses: list[Verse]) -> Document:
    [document] = bible.chapters(verses)
    return document


def _asked(
    blocks_of: dict[str, dict[Block, list[Verse]]],
    trained_keys: Iterable[str],
    settings: VerseSettings,
    rng: np.random.Generator,
) -> list[Document]:
    """Verses to query, of those that training sequences, cut to T, hold in every translation."""
    copies = Counter(trained_keys)
    documents = [
        document
        for verses in blocks_of[settings.query_translation].values()
        for document in map(_document, ([verse] for verse in verses))
        if copies[f"{document.source.key}:{document.source.labels[0]}"]
        == len(settings.translations)
    ]
    if len(documents) < settings.num_query:
        raise ValueError(
            f"num_query={settings.num_query} is more than the {len(documents)} verses of "
            f"{settings.query_translation!r} that are trained on in every translation: lower "
            f"it, or raise max_train={settings.max_train}"
        )
    chosen = np.sort(rng.permutation(len(documents))[: settings.num_query])
    return [documents[i] for i in chosen]
