"""A prepared corpus as a whole: its manifest, once every part is there, and its digests."""

import pathlib
from typing import Any

from stride_jax.data.copies import find_copies
from stride_jax.data.corpus_files import CorpusError
from stride_jax.data.corpus_parts import (
    STREAMS,
    Record,
    part_name,
    read_record,
    stream_dtype,
)
from stride_jax.data.prepare import FORMAT, Job
from stride_jax.data.token_files import part_record, streams_of
from stride_jax.runtime.files import (
    UnreadableFileError,
    file_digest,
    read_json,
    write_arrays,
    write_json,
)


def finish(job: Job) -> dict[str, Any] | None:
    """Write the manifest if every part is complete; what it says, or None.

    Several processes may do so at once: they write the same bytes.

    Raises:
      CorpusError: no document at all.
    """
    path = job.folder / "manifest.json"
    if path.exists():
        return read_json(path)
    if job.missing():
        return None
    records = [read_record(job.home, number) for number in range(len(job.parts))]
    tokenizer = job.tokenizer
    roles = STREAMS if job.settings.held_out else STREAMS[:1]
    total = {role: _total(records, role) for role in roles}
    faults, named = _faults(records)
    if not total[STREAMS[0]]["sequences"]:
        raise CorpusError(
            f"{job.settings.source} holds no text to train on"
            f"{f' ({said_of(faults, named)})' if faults else ''}: check --text_column, and "
            "--held_out"
        )
    shape = (
        job.settings.length,
        stream_dtype(tokenizer).str,
        tokenizer.vocab_size,
        tokenizer.bos_id,
        job.settings.predict_bos,
    )
    streams = streams_of(job.home, roles, [own.streams for own in records], *shape)
    copies = find_copies(list(streams.values()))
    write_arrays(job.folder / "copies.npz", **copies)
    write_json(
        path,
        {
            "format": FORMAT,
            "settings": job.settings,
            "tokenizer": file_digest(job.folder / "tokenizer.json"),
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "dtype": stream_dtype(tokenizer).str,
            "documents": sum(own.documents for own in records),
            "total": total,
            "copies": len(copies["row"]),
            "copies_digest": file_digest(job.folder / "copies.npz"),
            "faults": faults,
            "named": named,
            "parts": [{"streams": own.streams, "table": own.table} for own in records],
        },
    )
    return read_json(path)


def said_of(faults: dict[str, int], named: list[str]) -> str:
    """Bad rows in words."""
    counts = ", ".join(f"{count} {name}" for name, count in faults.items())
    return f"{sum(faults.values())} rows left out: {counts}; such as {', '.join(named[:3])}"


def _total(records: list[Record], role: str) -> dict[str, int]:
    """Tokens and sequences of a stream."""
    streams = [own.streams[role] for own in records]
    return {name: sum(own[name] for own in streams) for name in ("tokens", "sequences")}


def _faults(records: list[Record]) -> tuple[dict[str, int], list[str]]:
    """Bad rows by kind, and the first ones."""
    counts: dict[str, int] = {}
    for own in records:
        counts |= {name: counts.get(name, 0) + count for name, count in own.faults.items()}
    return counts, [name for own in records for name in own.named][:10]


def check_files(folder: pathlib.Path) -> int:
    """Compare every file of a prepared corpus with its digest; the number of files.

    Raises:
      UnreadableFileError: a file is missing or not what was written; names it and the remedy.
    """
    manifest = read_json(folder / "manifest.json")
    wanted = {
        folder / "tokenizer.json": manifest["tokenizer"],
        folder / "copies.npz": manifest["copies_digest"],
    }
    for number, own in enumerate(manifest["parts"]):
        name = folder / "parts" / part_name(number)
        wanted[name.with_name(f"{name.name}.documents.parquet")] = own["table"]
        for role, digests in own["streams"].items():
            wanted[name.with_name(f"{name.name}.{role}.tokens")] = digests["digest"]
            wanted[name.with_name(f"{name.name}.{role}.ids")] = digests["ids"]
    for path, digest in wanted.items():
        if not path.exists() or file_digest(path) != digest:
            own = path.parent.name == "parts"
            what = f"{part_record(path)} and {folder / 'manifest.json'}" if own else str(folder)
            raise UnreadableFileError(
                f"{path} is missing, or not what was written: its digest differs; remove {what} "
                "and run the same stride-jax prepare again"
            )
    return len(wanted)
