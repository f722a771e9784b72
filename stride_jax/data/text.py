"""From settings to tokenised, packed and split text in memory, stored on disk between runs."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from stride_jax.data import bible, text_files, truths
from stride_jax.data.documents import Document, files_of, read_documents
from stride_jax.data.packing import Packed, Tokenised, pack_stream, select, tokenise
from stride_jax.data.text_examples import TextExamples, named
from stride_jax.data.tokens import Tokenizer, load_tokenizer, train_tokenizer
from stride_jax.runtime.files import fingerprint, reading

ROLES = ("train", "calibration", "query")


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The text to attribute, and its cuts and splits.

    Attributes:
      name: `bible`, or `files` for the user's own.
      translations: translations of the Bible, one after the other: `kjv`, `asv`, `web`.
      books: books of the Bible, such as `BOOKS[:16]`; none for all 66.
      path: own file or folder (`.txt`, `.jsonl`, `.parquet`), for `files`.
      text_column, id_column: columns of own `.jsonl` and Parquet files.
      separator: text between documents of own `.txt` files; empty: a file is one document.
      tokenizer: path of a tokenizer.json; empty: one of `vocab_size` tokens is trained.
      vocab_size: number of token ids, 256 bytes and the mark of a document's start included.
      length: T, tokens per sequence.
      max_train: largest number of training sequences, drawn at random.
      num_calibration, num_query: numbers of held-out sequences.
      split: `sequence`: held-out sequences are drawn at random from the stream; `document`: from
        documents that no training sequence holds.
      predict_bos: whether the mark of the next document counts as a label.
      seed: random seed of the draws.
    """

    name: str = "bible"
    translations: tuple[str, ...] = ("kjv",)
    books: tuple[str, ...] = ()
    path: str = ""
    text_column: str = "text"
    id_column: str = "id"
    separator: str = ""
    tokenizer: str = ""
    vocab_size: int = 1024
    length: int = 64
    max_train: int = 16_384
    num_calibration: int = 200
    num_query: int = 200
    split: str = "sequence"
    predict_bos: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class TextSplits:
    """Sequences of three disjoint splits.

    Attributes:
      train, calibration, query: sequences of each split.
      tokenizer: tokenizer of the text.
      folder: folder of the splits and of `tokenizer.json`.
      truth: for retrieval, from the id of a query to the ids of the training sequences that answer
        it; empty where that isn't known.
    """

    train: TextExamples
    calibration: TextExamples
    query: TextExamples
    tokenizer: Tokenizer
    folder: pathlib.Path
    truth: truths.Truth = dataclasses.field(default_factory=dict)


def load_text(settings: TextSettings, workdir: str | os.PathLike[str]) -> TextSplits:
    """Read, tokenise, pack and split text, once; the same settings and text are read back.

    With `split="sequence"` every document holds training sequences, so the tokenizer is trained on
    all; with `split="document"` it is trained on the training documents alone.

    Args:
      settings: text, cuts and splits.
      workdir: folder in whose `data` folder results are stored.

    Returns:
      Splits whose sequences are in the order of the text.

    Raises:
      ValueError: unknown names, files or columns that can't be read, a vocabulary the text can't
        fill, or fewer sequences than are held out; the message names the remedy.

    Warns:
      UserWarning: some sequences have the same content; given once, when they are packed.
    """
    _check(settings)
    home = pathlib.Path(workdir) / "data"
    folder = home / f"text-{_fingerprint(settings)}"
    if not text_files.is_complete(folder):
        documents = _documents(settings, home)
        tokenizer, splits = split_documents(documents, settings)
        text_files.write(folder, tokenizer, splits, settings)
    return TextSplits(**text_files.read(folder, ROLES), folder=folder)


def _check(settings: TextSettings) -> None:
    if settings.name not in ("bible", "files"):
        raise ValueError(f"no text {settings.name!r}: use 'bible', or 'files' with a path")
    if (settings.name == "files") != bool(settings.path):
        raise ValueError(
            f"name={settings.name!r}, path={settings.path!r}: 'files' needs a path, 'bible' none"
        )
    if settings.split not in ("sequence", "document"):
        raise ValueError(f"split={settings.split!r} must be 'sequence' or 'document'")
    for name, least in (("max_train", 1), ("num_calibration", 0), ("num_query", 1), ("length", 2)):
        if (value := getattr(settings, name)) < least:
            raise ValueError(f"{name}={value} must be at least {least}")


def _fingerprint(settings: TextSettings) -> str:
    """Hash of the settings, and of the names and contents of their files, wherever these lie."""
    parts: list[Any] = [text_files.FORMAT, bible.VERSION]
    for file in files_of(settings.path) if settings.path else []:
        parts += [file.name, os.path.relpath(file, settings.path), _digest(file)]
    if settings.tokenizer:
        if not os.path.exists(settings.tokenizer):
            raise ValueError(f"no tokenizer file {settings.tokenizer}: give its path, or none")
        parts.append(_digest(settings.tokenizer))
    return fingerprint(dataclasses.replace(settings, path="", tokenizer=""), *parts)


def _digest(path: str | os.PathLike[str]) -> str:
    with reading(path, "text", "give a file"), open(path, "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


def _documents(settings: TextSettings, home: pathlib.Path) -> list[Document]:
    if settings.name == "bible":
        verses = bible.read_verses(settings.translations, home / "tfds", books=settings.books)
        return bible.chapters(verses)
    return read_documents(
        settings.path,
        text_column=settings.text_column,
        id_column=settings.id_column,
        separator=settings.separator,
    )


def _tokenizer_for(documents: list[Document], path: str, vocab_size: int) -> Tokenizer:
    """The tokenizer of a file, or one trained on these documents."""
    if path:
        return load_tokenizer(path)
    return train_tokenizer([document.text for document in documents], vocab_size)


def split_documents(
    documents: list[Document], settings: TextSettings
) -> tuple[Tokenizer, dict[str, TextExamples]]:
    """Tokenise, pack and split documents; see `load_text`."""
    draw = _by_sequence if settings.split == "sequence" else _by_document
    tokenizer, parts = draw(documents, settings)
    return tokenizer, named(parts, tuple(document.source for document in documents))


def _stream(tokenised: Tokenised, settings: TextSettings, tokenizer: Tokenizer) -> Packed:
    bos, predicted = tokenizer.bos_id, settings.predict_bos
    return pack_stream(tokenised, settings.length, bos, predict_bos=predicted)


def _by_sequence(
    documents: list[Document], settings: TextSettings
) -> tuple[Tokenizer, dict[str, Packed]]:
    """Held-out sequences drawn at random from the stream of all documents."""
    tokenizer = _tokenizer_for(documents, settings.tokenizer, settings.vocab_size)
    packed = _stream(tokenise(documents, tokenizer), settings, tokenizer)
    full = int((packed.sizes_N == settings.length).sum())
    if full <= settings.num_query + settings.num_calibration:
        raise ValueError(
            f"{_held(settings)} leave nothing of the text's {full} to train on: hold out fewer"
        )
    query, calibration, rest = _draw(packed, settings)
    train = packed.take(np.sort(rest[: settings.max_train]))
    return tokenizer, {
        "train": train,
        "calibration": packed.take(calibration),
        "query": packed.take(query),
    }


def _by_document(
    documents: list[Document], settings: TextSettings
) -> tuple[Tokenizer, dict[str, Packed]]:
    """Held-out sequences drawn from documents that no training sequence holds."""
    order = np.random.default_rng(settings.seed).permutation(len(documents))
    ends = np.cumsum([len(documents[i].text) for i in order])
    wanted = settings.num_query + settings.num_calibration
    # The characters per token aren't known before the tokenizer is trained on the rest.
    for characters in (4, 8, 16):
        count = int(np.searchsorted(ends, wanted * settings.length * characters)) + 1
        if count >= len(documents):
            break
        training = [documents[i] for i in np.sort(order[count:])]
        tokenizer = _tokenizer_for(training, settings.tokenizer, settings.vocab_size)
        whole = tokenise(documents, tokenizer)
        held = _stream(select(whole, order[:count]), settings, tokenizer)
        if (held.sizes_N == settings.length).sum() >= wanted:
            query, calibration, _ = _draw(held, settings)
            rest = _stream(select(whole, order[count:]), settings, tokenizer)
            order = np.random.default_rng(settings.seed).permutation(len(rest))
            return tokenizer, {
                "train": rest.take(np.sort(order[: settings.max_train])),
                "calibration": held.take(calibration),
                "query": held.take(query),
            }
    raise ValueError(
        f"{_held(settings)} take all {len(documents)} documents ({ends[-1]} characters): hold out "
        "fewer, or use split='sequence'"
    )


def _held(settings: TextSettings) -> str:
    return (
        f"num_query={settings.num_query} and num_calibration={settings.num_calibration} sequences "
        f"of {settings.length} tokens"
    )


def _draw(packed: Packed, settings: TextSettings) -> list[np.ndarray]:
    """Rows of the queries, of the calibration set, and the rest in random order.

    All roles share one order, so training sets of other sizes have the same queries, and nest.
    """
    full = packed.sizes_N == settings.length
    order = np.random.default_rng(settings.seed).permutation(np.flatnonzero(full))
    bounds = np.cumsum([settings.num_query, settings.num_calibration])
    query, calibration, rest = np.split(order, bounds)
    return [np.sort(query), np.sort(calibration), np.append(rest, np.flatnonzero(~full))]
