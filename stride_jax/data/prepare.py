"""A corpus tokenised once, by any number of processes, into a folder that runs read.

    tokenizer.json   given, or trained on a sample
    job.json         settings, files, parts: what every process works from
    parts/           files of each part, see corpus_parts
    copies.npz       sequences of the same content as an earlier one
    manifest.json    counts and digests; written last, when every part is there

Each process takes parts of its own, and a part's bytes depend on nothing but its input, so neither
the number of processes nor a kill changes what is written.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stride_jax.data.corpus_files import (
    Columns,
    CorpusError,
    Part,
    SourceFile,
    cut_parts,
    list_files,
)
from stride_jax.data.corpus_parts import (
    PartSettings,
    Work,
    is_held_out,
    record_of,
    write_part,
)
from stride_jax.data.corpus_rows import read_rows
from stride_jax.data.tokens import Tokenizer, load_tokenizer, train_tokenizer
from stride_jax.runtime.files import (
    UnreadableFileError,
    atomic_path,
    file_digest,
    plain,
    read_json,
    write_json,
)

FORMAT = 1
"""To be raised when the files change: older folders are then refused."""

# Parts whose beginnings a tokenizer's sample is drawn from.
_SAMPLED = 64


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """What is tokenised, and how.

    Attributes:
      source: file or folder of `.parquet`, `.jsonl`, `.txt` or `.array_record` files, or an address
        such as `gs://bucket/folder`.
      text_column, id_column: columns of the text and of the document's id, which may be missing.
      separator: text between documents of a `.txt` file; empty: a file is one document.
      tokenizer: path of a tokenizer.json; empty: one of `vocab_size` tokens is trained.
      vocab_size: number of token ids, 256 bytes and the mark of a document's start included.
      sample: characters, in millions, that a tokenizer is trained on, evenly spread.
      length: T, tokens per sequence.
      held_out: share of the documents that no training sequence holds, by a hash of their text.
      predict_bos: whether the mark of the next document counts as a label.
      part: MiB of input that one process tokenises at a time.
    """

    source: str
    text_column: str = "text"
    id_column: str = "id"
    separator: str = ""
    tokenizer: str = ""
    vocab_size: int = 32_768
    sample: int = 64
    length: int = 1024
    held_out: float = 0.0
    predict_bos: bool = False
    part: int = 64

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("part", 1), ("sample", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} is a share of the documents, in [0, 1)")

    @property
    def columns(self) -> Columns:
        """Where documents are."""
        return Columns(self.text_column, self.id_column, self.separator)

    @property
    def parts(self) -> PartSettings:
        """What shapes a part's files."""
        return PartSettings(self.columns, self.length, self.predict_bos, self.held_out)


@dataclasses.dataclass(frozen=True)
class Job:
    """What every process works from.

    Attributes:
      settings: of the job.
      files, parts: what is read.
      folder: where it is written.
    """

    settings: PrepareSettings
    files: list[SourceFile]
    parts: list[Part]
    folder: pathlib.Path

    @property
    def home(self) -> pathlib.Path:
        """The folder of the parts' files."""
        return self.folder / "parts"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the job."""
        return load_tokenizer(self.folder / "tokenizer.json")

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[int]:
        """Numbers of the parts of one of several processes that are not complete."""
        own = range(share[0], len(self.parts), share[1])
        return [number for number in own if not record_of(self.home, number).exists()]

    def write(self, number: int, tokenizer: Tokenizer, report: Any, wait: bool) -> bool:
        """Tokenise a part; see `corpus_parts.write_part`."""
        part = self.parts[number]
        work = Work(self.home, number, self.files[part.file], part, tokenizer, self.settings.parts)
        return write_part(work, report, wait)


def plan(settings: PrepareSettings, folder: pathlib.Path) -> Job:
    """List the files, cut them into parts, and settle the tokenizer; once, by one process.

    Raises:
      CorpusError: input that can't be read.
      ValueError: the folder holds another job, or the tokenizer can't be had.
    """
    files = list_files(settings.source)
    if settings.tokenizer:
        load_tokenizer(settings.tokenizer)  # refused before anything is written
    if (folder / "job.json").exists():
        job = read_job(folder)
        _refuse_other(job, settings, files)
        return job
    parts = cut_parts(files, settings.part << 20, settings.columns)
    job = Job(settings, files, parts, folder)
    job.home.mkdir(parents=True, exist_ok=True)
    if settings.tokenizer:
        content = pathlib.Path(settings.tokenizer).read_bytes()
        with atomic_path(folder / "tokenizer.json") as temporary:
            temporary.write_bytes(content)
    else:
        _trained(job).save(folder / "tokenizer.json")
    write_json(folder / "job.json", _told(job))
    return job


def _told(job: Job) -> dict[str, Any]:
    tokenizer = job.settings.tokenizer
    return {
        "format": FORMAT,
        "settings": job.settings,
        "given": file_digest(tokenizer) if tokenizer else "",
        "tokenizer": file_digest(job.folder / "tokenizer.json"),
        "files": [list(file) for file in job.files],
        "parts": [list(part) for part in job.parts],
    }


def read_job(folder: pathlib.Path) -> Job:
    """The job of a folder.

    Raises:
      ValueError: it is of another version, or its tokenizer was changed.
    """
    told = read_json(folder / "job.json")
    refuse_changed(folder, told)
    return Job(
        PrepareSettings(**told["settings"]),
        [SourceFile(*file) for file in told["files"]],
        [Part(*part) for part in told["parts"]],
        folder,
    )


def refuse_changed(folder: pathlib.Path, told: dict[str, Any]) -> None:
    """Refuse a folder of another version, or with another tokenizer than it says.

    Args:
      folder: the folder.
      told: its `job.json` or `manifest.json`.

    Raises:
      ValueError: names the file and the remedy.
    """
    if told["format"] != FORMAT:
        raise ValueError(
            f"{folder} is of format {told['format']}, and this version knows {FORMAT}: prepare the "
            "corpus again, into another folder"
        )
    path = folder / "tokenizer.json"
    if file_digest(path) != told["tokenizer"]:
        raise UnreadableFileError(
            f"{path} is not the one that the corpus was tokenised with: its digest differs; copy "
            "it anew, or prepare the corpus again, into another folder"
        )


def _refuse_other(job: Job, settings: PrepareSettings, files: list[SourceFile]) -> None:
    """Refuse to mix what two jobs write."""
    theirs, ours = plain(job.settings), plain(settings)
    told = [f"{n}: {theirs[n]!r} there, {ours[n]!r} here" for n in ours if theirs[n] != ours[n]]
    if settings.tokenizer and not told:
        given = read_json(job.folder / "job.json")["given"]
        if given != file_digest(settings.tokenizer):
            told = [f"{settings.tokenizer} was another file"]
    if not told and files != job.files:
        before = {file.name: file.size for file in job.files}
        now = {file.name: file.size for file in files}
        changed = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
        first = changed[0] if changed else files[0].path
        told = [f"{max(1, len(changed))} files of the source changed, such as {first}"]
    if told:
        raise ValueError(
            f"{job.folder} holds another job ({'; '.join(told)}): take another --out, or remove it"
        )


def _trained(job: Job) -> Tokenizer:
    """A tokenizer of the beginnings of evenly spaced parts; held-out documents are left out."""
    chosen = np.unique(np.linspace(0, len(job.parts) - 1, _SAMPLED).astype(int))
    each = math.ceil(job.settings.sample * 1_000_000 / len(chosen))
    texts = [text for i in chosen.tolist() for text in _beginning(job, job.parts[i], each)]
    if not texts:
        raise CorpusError(
            f"{job.settings.source} begins with no document of text: check --text_column, which "
            f"is {job.settings.text_column!r}, or give --tokenizer"
        )
    return train_tokenizer(texts, job.settings.vocab_size)


def _beginning(job: Job, part: Part, characters: int) -> Iterator[str]:
    settings = job.settings
    for row in read_rows(job.files[part.file], part, settings.columns):
        if row.fault or is_held_out(row.text, settings.held_out):
            continue
        yield row.text[:characters]
        characters -= len(row.text)
        if characters <= 0:
            return


def wait_for_job(
    settings: PrepareSettings,
    folder: pathlib.Path,
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """The job that the first of several processes plans; the others wait for it."""
    while not (folder / "job.json").exists():
        sleep(0.5)
    job = read_job(folder)
    _refuse_other(job, settings, list_files(settings.source))
    return job
