"""A prepared corpus as the splits of a run: nothing is held but a few bytes per sequence."""

import dataclasses
import functools
import os
import pathlib

import numpy as np

from stride_jax.data.corpus_metadata import metadata
from stride_jax.data.corpus_parts import HELD, TRAIN, part_name
from stride_jax.data.prepare import refuse_changed
from stride_jax.data.token_files import Stream, streams_of
from stride_jax.data.tokens import Tokenizer, load_tokenizer
from stride_jax.examples import Examples
from stride_jax.runtime.files import (
    UnreadableFileError,
    fingerprint,
    read_arrays,
    read_json,
)
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.rows import Rows


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """A folder of `stride-jax prepare`, and its splits.

    Attributes:
      folder: the folder.
      max_train: largest number of training sequences, drawn at random; 0 for all.
      num_calibration, num_query: numbers of held-out sequences.
      split: `sequence`: held-out sequences are drawn at random from the training documents;
        `document`: from those that `prepare --held_out` left out.
      seed: random seed of the draws.
    """

    folder: str = ""
    max_train: int = 0
    num_calibration: int = 200
    num_query: int = 200
    split: str = "sequence"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("sequence", "document"):
            raise ValueError(f"split={self.split!r} must be 'sequence' or 'document'")
        for name, least in (("max_train", 0), ("num_calibration", 0), ("num_query", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}={value} must be at least {least}")


@dataclasses.dataclass(frozen=True, eq=False)
class ShardText:
    """Sequences of one split, and where they come from.

    Attributes:
      stream: where they lie.
      rows: numbers of the sequences in the stream, ascending.
      names, keys: hashes that name them, and that copies share.
    """

    stream: Stream
    rows: "Chosen"
    names: Rows
    keys: Rows | None

    @property
    def examples(self) -> Examples:
        """Inputs, labels and ids; −1 where a label does not count. Tokens stay on disk."""
        inputs, labels = Tokens(self.stream, self.rows), Labels(self.stream, self.rows)
        return Examples.trusted(inputs, labels, self.names, None, self.keys)  # pyright: ignore[reportArgumentType]

    @property
    def sizes_N(self) -> Rows:
        """Inputs that are not padding, which come first, `[N]` int64."""
        return Sizes(self.stream, self.rows)

    def in_memory(self) -> Examples:
        """`examples`, read."""
        own = self.examples
        return Examples.trusted(own.inputs[:], own.labels[:], own.ids[:])

    def references(self, row: int) -> list[str]:
        """Ids of the documents that a sequence holds parts of."""
        return [str(document["id"]) for document in self.documents(row)]

    def documents(self, row: int) -> list[dict]:
        """The documents of a sequence: `id`, `file`, the `place` of their row in it, and the
        `offset`, the first of their tokens that the sequence holds."""
        length = self.stream.length
        (part,), (local,) = self.stream.places(self.rows[np.array([row])])
        path = self.stream.folder / f"{part_name(int(part))}.documents.parquet"
        table, starts = _documents(path, self.stream.role, length)
        size = int(self.stream.sizes(self.rows[np.array([row])])[0])
        first = int(np.searchsorted(starts, local * length, side="right")) - 1
        last = int(np.searchsorted(starts, local * length + size))
        rows = table.slice(max(first, 0), last - max(first, 0)).to_pylist()
        begins = starts[max(first, 0) : last].tolist()
        # A document's mark stands before its first token.
        offsets = [max(int(local) * length - begin - 1, 0) for begin in begins]
        return [own | {"offset": offset} for own, offset in zip(rows, offsets, strict=True)]

    def origins_of(self, row: int) -> list[dict]:
        """`documents`, with the `metadata` of the corpus' own files, where they are there."""
        folder = self.stream.folder.parent
        return [
            own | {"metadata": metadata(folder, own["file"], own["place"])}
            for own in self.documents(row)
        ]


@functools.lru_cache(maxsize=4)
def _documents(path: pathlib.Path, role: str, length: int):
    """A part's documents of one stream, and the place of each one's mark there."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    table = table.filter(np.asarray(table["stream"]) == role)
    starts = table["sequence"].to_numpy() * length + table["offset"].to_numpy()
    return table.select(["id", "file", "place"]), starts


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSplits:
    """Sequences of three disjoint splits.

    Attributes:
      train, calibration, query: sequences of each split.
      tokenizer: of the text.
      folder: what they are read from.
      digest: hash of the folder's content.
    """

    train: ShardText
    calibration: ShardText
    query: ShardText
    tokenizer: Tokenizer
    folder: pathlib.Path
    digest: str

    def examples(self) -> dict[str, Examples]:
        """Examples by role: those of the training set stay on disk."""
        held = {role: getattr(self, role).in_memory() for role in ("calibration", "query")}
        return {"train": self.train.examples, **held}


class Chosen:
    """Numbers of the sequences of a split, in the memory of those that are few: it or the rest."""

    def __init__(
        self, count: int, *, only: np.ndarray | None = None, without: np.ndarray | None = None
    ) -> None:
        self._only = only
        without = np.zeros(0, np.int64) if without is None else np.sort(without)
        self._shift = without - np.arange(len(without))
        self._count = count - len(without) if only is None else len(only)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self._only is not None:
            return self._only[rows].astype(np.int64)
        return rows + np.searchsorted(self._shift, rows, side="right")


class _Column(Rows):
    """A column of a split."""

    def __init__(self, stream: Stream, chosen: Chosen) -> None:
        self._stream, self._chosen = stream, chosen
        self.shape, self.dtype = (len(chosen), stream.length), np.dtype(np.int32)

    @property
    def stand_in(self) -> np.ndarray:
        return np.full((1, self._stream.length), self._stream.vocab_size - 1, np.int32)


class Tokens(_Column):
    """Input tokens, `[N, T]`."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._stream.read(self._chosen[rows])[:, :-1]


class Labels(_Column):
    """Following tokens, `[N, T]`, −1 where none counts: inputs shifted by one."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        own = self._chosen[rows]
        return self._stream.labels(self._stream.read(own), own)


class Sizes(_Column):
    """Inputs that are not padding, `[N]`."""

    def __init__(self, stream: Stream, chosen: Chosen) -> None:
        super().__init__(stream, chosen)
        self.shape, self.dtype = (len(chosen),), np.dtype(np.int64)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._stream.sizes(self._chosen[rows])


class Names(Rows):
    """Sequences' hashes as strings of 16 hexadecimal digits, `[N]`; 8 bytes each, on disk.

    Args:
      stream, chosen: the split.
      first: number of the stream's first sequence among those of all streams.
      copies: `row` and `hash` of sequences that repeat an earlier one; without, names are what
        copies share.
    """

    def __init__(
        self, stream: Stream, chosen: Chosen, first: int, copies: dict[str, np.ndarray] | None
    ) -> None:
        self._stream, self._chosen, self._first, self._copies = stream, chosen, first, copies
        self.shape, self.dtype = (len(chosen),), np.dtype("U16")

    def read(self, rows: np.ndarray) -> np.ndarray:
        own = self._chosen[rows]
        hashes = self._stream.hashes(own)
        if self._copies is not None and len(copy := self._copies["row"]):
            at = np.minimum(np.searchsorted(copy, own + self._first), len(copy) - 1)
            hashes = np.where(copy[at] == own + self._first, self._copies["hash"][at], hashes)
        digits = hashes.astype("<u8").tobytes().hex().encode()
        return np.frombuffer(digits, "S16").astype("U16")


def load_shards(settings: ShardSettings) -> ShardSplits:
    """The splits of a prepared corpus.

    Raises:
      ValueError: no such folder, one that is not complete, of another version, or with fewer
        sequences than are held out; the message names the remedy.
    """
    folder = local_folder(settings.folder, "shards.folder", writable=False)
    manifest = _manifest(folder)
    own, copies = manifest["settings"], read_arrays(folder / "copies.npz")
    roles = list(manifest["total"])
    streams = streams_of(
        folder / "parts", roles, [part["streams"] for part in manifest["parts"]], own["length"],
        manifest["dtype"], manifest["vocab_size"], manifest["bos_id"], own["predict_bos"],
    )  # fmt: skip
    _check_sizes(streams)
    chosen = _by_sequence(streams, settings) if settings.split == "sequence" else None
    chosen = _by_document(streams, settings, own["held_out"]) if chosen is None else chosen
    firsts = dict(zip(roles, np.cumsum([0, *map(len, streams.values())]).tolist(), strict=False))

    def split(role: str, rows: Chosen) -> ShardText:
        stream, first = streams[role], firsts[role]
        keys = Names(stream, rows, first, None) if len(copies["row"]) else None
        return ShardText(stream, rows, Names(stream, rows, first, copies), keys)

    held = HELD if settings.split == "document" else TRAIN
    train, calibration, query = chosen
    return ShardSplits(
        split(TRAIN, train), split(held, calibration), split(held, query),
        load_tokenizer(folder / "tokenizer.json"), folder, fingerprint(manifest),
    )  # fmt: skip


def _manifest(folder: pathlib.Path) -> dict:
    path = folder / "manifest.json"
    if not path.is_file():
        begun = (folder / "job.json").exists()
        raise ValueError(
            f"shards.folder={str(folder)!r} holds no complete corpus: "
            + (
                "some of its parts are missing; run the same stride-jax prepare again"
                if begun
                else f"make one with stride-jax prepare --source=… --out={folder}"
            )
        )
    manifest = read_json(path)
    refuse_changed(folder, manifest)
    return manifest


def _check_sizes(streams: dict[str, Stream]) -> None:
    """Refuse files that are not as long as was written, before any is read."""
    for stream in streams.values():
        for part, count in enumerate(stream.sequences):
            wanted = {
                "tokens": (count * stream.length + (count > 0)) * stream.dtype.itemsize,
                "ids": 8 * count,
            }
            for kind, size in wanted.items():
                path = stream.path(part, kind)
                there = os.path.getsize(path) if path.exists() else None
                if there != size:
                    what = "is missing" if there is None else f"has {there} bytes"
                    raise UnreadableFileError(
                        f"{path} {what}, and {size} were written: copy it anew, or remove "
                        f"{part_name(part)}.json beside it and manifest.json, and run the same "
                        "stride-jax prepare again"
                    )


def _by_sequence(
    streams: dict[str, Stream], settings: ShardSettings
) -> tuple[Chosen, Chosen, Chosen]:
    """Held-out sequences drawn at random, as `text.load_text` draws them."""
    stream, count = streams[TRAIN], len(streams[TRAIN])
    full = stream.is_full()
    held, calibration, rest = _draw(full, settings)
    if not len(rest):
        raise ValueError(
            f"{_held(settings)} leave nothing of the corpus' {int(full.sum())} to train on: hold "
            "out fewer"
        )
    others = np.flatnonzero(~full).astype(rest.dtype)
    if 0 < settings.max_train < len(rest) + len(others):
        only = np.sort(np.append(rest, others)[: settings.max_train])
        train = Chosen(count, only=only)
    else:
        train = Chosen(count, without=np.append(held, calibration))
    return train, Chosen(count, only=calibration), Chosen(count, only=held)


def _by_document(
    streams: dict[str, Stream], settings: ShardSettings, share: float
) -> tuple[Chosen, Chosen, Chosen]:
    """Held-out sequences drawn from held-out documents."""
    if HELD not in streams:
        raise ValueError(
            f"split='document' needs held-out documents, and {settings.folder} has none: prepare "
            "it with --held_out=.01, or use split='sequence'"
        )
    stream, count = streams[HELD], len(streams[TRAIN])
    full = stream.is_full()
    if full.sum() < settings.num_query + settings.num_calibration:
        raise ValueError(
            f"{_held(settings)} are more than the {int(full.sum())} of the held-out documents: "
            f"hold out fewer, or prepare with more than --held_out={share}"
        )
    query, calibration, _ = _draw(full, settings)
    train = Chosen(count)
    if 0 < settings.max_train < count:
        order = np.random.default_rng(settings.seed).permutation(count)
        train = Chosen(count, only=np.sort(order[: settings.max_train]))
    return train, Chosen(len(stream), only=calibration), Chosen(len(stream), only=query)


def _draw(full: np.ndarray, settings: ShardSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the queries, of the calibration set, and the rest in random order."""
    rows = np.flatnonzero(full)
    rows = rows.astype(np.int32 if len(full) < 2**31 else np.int64)
    order = np.random.default_rng(settings.seed).permutation(rows)
    bounds = np.cumsum([settings.num_query, settings.num_calibration])
    query, calibration, rest = np.split(order, bounds)
    return np.sort(query), np.sort(calibration), rest


def _held(settings: ShardSettings) -> str:
    return f"num_query={settings.num_query} and num_calibration={settings.num_calibration}"
