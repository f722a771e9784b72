"""Tokenise a corpus once into a folder that runs read: shards={'folder': …} in a config.

    stride-jax prepare --source=corpus/ --out=tokens --tokenizer=tokenizer.json --length=2048
    stride-jax prepare --source=gs://bucket/fineweb --out=tokens --num_processes=8 --process_id=3

Reads Parquet, JSON lines, text and array_record. Killed anywhere, the same command goes on and ends
in the same bytes, whatever the number of workers and processes. Rows that hold no text are counted
and named.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tqdm

from stride_jax.cli.doors import Parser, at_least
from stride_jax.data.prepare import Job, PrepareSettings, plan, wait_for_job
from stride_jax.data.prepare_workers import write_parts
from stride_jax.data.prepared import check_files, finish, said_of
from stride_jax.runtime.durable import Preempted, StopRequest
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.screen import visible

# What a job that was killed early leaves; anything else is another's folder.
_OURS = {"job.json", "tokenizer.json", "parts", "copies.npz", "manifest.json"}


def _parser() -> Parser:
    parser, default = Parser("prepare", __doc__), PrepareSettings("")
    parser.flag("source", "File or folder, or an address that fsspec opens.", required=True)
    parser.flag("out", "Folder of the tokens.", required=True)
    parser.flag("tokenizer", "Its tokenizer.json; by default one is trained on a sample.")
    parser.flag(
        "vocab_size", "Tokens of a trained one.", type=at_least(257), default=default.vocab_size
    )
    parser.flag(
        "sample", "Million characters it is trained on.", type=at_least(1), default=default.sample
    )
    parser.flag("length", "Tokens per sequence.", type=at_least(2), default=default.length)
    parser.flag(
        "held_out", "Share of documents that no training sequence holds.", type=float,
        default=default.held_out,
    )  # fmt: skip
    parser.switch("predict_bos", "Count the mark of the next document as a label.")
    parser.flag("text_column", "Column of the text.", default=default.text_column)
    parser.flag("id_column", "Column of a document's id, if any.", default=default.id_column)
    parser.flag("separator", r"Between documents of a .txt file, such as '\n\n\n'.", default="")
    parser.flag("part", "MiB tokenised at a time.", type=at_least(1), default=default.part)
    parser.flag(
        "workers", "Processes started here; by default one per core.", type=at_least(1),
        default=None,
    )  # fmt: skip
    parser.flag("num_processes", "Of this job, on all hosts.", type=at_least(1), default=1)
    parser.flag("process_id", "This one's, from 0.", type=at_least(0), default=0)
    parser.switch("check", "Compare every file with its digest, once all are there.")
    return parser


def main(words: Sequence[str]) -> int:
    """Prepare the corpus, or go on with it; print what is in the folder."""
    given, _ = _parser().read(words)
    if given.process_id >= given.num_processes:
        raise ValueError(
            f"--process_id={given.process_id} of --num_processes={given.num_processes}: they count "
            "from 0"
        )
    folder = _folder(given.out)
    settings = PrepareSettings(
        given.source, given.text_column, given.id_column,
        given.separator.replace("\\n", "\n").replace("\\t", "\t"), given.tokenizer or "",
        given.vocab_size, given.sample, given.length, given.held_out, given.predict_bos, given.part,
    )  # fmt: skip
    stop = StopRequest().listen()
    if given.process_id == 0:
        folder.mkdir(parents=True, exist_ok=True)
        job = plan(settings, folder)
    else:
        job = wait_for_job(settings, folder)
    share = (given.process_id, given.num_processes)
    if not _write(job, given.workers or os.cpu_count() or 1, share, stop):
        raise Preempted
    manifest = finish(job)
    if manifest is None:
        print(visible(f"this process is done; {len(job.missing())} parts are with the others"))
        return 0
    _show(manifest, folder)
    if given.check:
        print(visible(f"{check_files(folder)} files are as written"))
    return 0


def _folder(text: str) -> pathlib.Path:
    folder = local_folder(text, "out")
    if folder.is_dir() and not (folder / "job.json").exists():
        others = sorted(p.name for p in folder.iterdir() if not _known(p.name))
        if others:
            raise ValueError(
                f"--out={folder} holds {others[0]!r} and no job: give a folder of its own"
            )
    return folder


def _known(name: str) -> bool:
    return name in _OURS or any(name.startswith(f".{own}.") for own in _OURS)


def _write(job: Job, workers: int, share: tuple[int, int], stop: StopRequest) -> bool:
    own = len(range(share[0], len(job.parts), share[1]))
    bar = tqdm.tqdm(
        desc="prepare", unit="token", unit_scale=True, dynamic_ncols=True, leave=False,
        postfix=f"{own - len(job.missing(share))} of {own} parts",
    )  # fmt: skip
    done = own - len(job.missing(share))

    def told(tokens: int, parts: int) -> None:
        nonlocal done
        done += parts
        if parts:
            bar.set_postfix_str(f"{done} of {own} parts", refresh=False)
        bar.update(tokens)

    with bar:
        return write_parts(job, workers, told, share, lambda: stop)


def _show(manifest: dict[str, Any], folder: pathlib.Path) -> None:
    streams = ", ".join(
        f"{own['sequences']} {role} sequences ({own['tokens']} tokens)"
        for role, own in manifest["total"].items()
    )
    print(visible(f"{folder}: {manifest['documents']} documents, {streams}", kept=""))
    said = f"{manifest['vocab_size']} token ids; {manifest['copies']} sequences repeat another"
    print(visible(said, kept=""))
    print(visible(f"in a config: shards={{'folder': {str(folder)!r}}}", kept=""))
    if manifest["faults"]:
        print(visible(said_of(manifest["faults"], manifest["named"]), kept=""))
