"""The parts of a job tokenised by this process, or by several that it starts."""

import multiprocessing
import os
import pathlib
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from stride_jax.data.corpus_files import CorpusError
from stride_jax.data.prepare import Job, read_job

Told = Callable[[int, int], None]
"""Told of tokens written and of parts completed since it was last called."""


def write_parts(
    job: Job,
    workers: int,
    told: Told,
    share: tuple[int, int] = (0, 1),
    asked_to_stop: Callable[[], Any] = bool,
) -> bool:
    """Tokenise one process' share of the parts.

    Args:
      job: what is done.
      workers: processes that work on it; 1 for this one alone.
      told: told of progress.
      share: number of this process of the job, and of how many.
      asked_to_stop: whether to leave the rest for later; a part that is begun is dropped.

    Returns:
      Whether all of the share is complete.

    Raises:
      CorpusError: input that can't be read, or a worker that was killed.
    """
    missing = job.missing(share)
    if workers > 1 and len(missing) > 1:
        _start(job, min(workers, len(missing)), missing, told, asked_to_stop)
    else:
        _write(job, missing, told, asked_to_stop)
    return not job.missing(share)


class _Stopped(Exception):
    """Asked to stop in the middle of a part."""


def _write(job: Job, numbers: Sequence[int], told: Told, asked_to_stop: Callable[[], Any]) -> None:
    tokenizer = job.tokenizer

    def report(characters: int, tokens: int) -> None:
        del characters
        told(tokens, 0)
        if asked_to_stop():
            raise _Stopped

    # Parts that another command is at come last.
    left = list(numbers)
    for patient in (False, True):
        waiting, left = left, []
        for number in waiting:
            try:
                whole = job.write(number, tokenizer, report, wait=patient)
            except _Stopped:
                return
            told(0, int(whole))
            left += [] if whole else [number]


def _start(
    job: Job,
    workers: int,
    numbers: list[int],
    told: Told,
    asked_to_stop: Callable[[], Any],
) -> None:
    """Processes with parts of their own, which end with this one."""
    context = multiprocessing.get_context("spawn")
    running: dict[Any, Any] = {}
    try:
        for i in range(workers):
            here, there = context.Pipe(duplex=False)
            words = (str(job.folder), numbers[i::workers], there)
            process = context.Process(target=_work, args=words, daemon=True)
            process.start()
            there.close()
            running[here] = process
        while running and not asked_to_stop():
            for connection in wait(list(running), timeout=0.5):
                _hear(running, connection, told)
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _hear(running: dict[Any, Any], connection: Any, told: Told) -> None:
    try:
        message = connection.recv()
    except EOFError:
        process = running.pop(connection)
        process.join()
        if process.exitcode:
            raise CorpusError(
                f"a worker ended with code {process.exitcode}: run the same command again, with "
                "fewer --workers if memory is short"
            ) from None
        return
    if isinstance(message, str):
        raise CorpusError(message)
    told(*message)


def _work(folder: str, numbers: list[int], connection: Connection) -> None:
    # One thread each: the processes are as many as the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        job = read_job(pathlib.Path(folder))
        _write(job, numbers, lambda *counts: connection.send(counts), bool)
    except (CorpusError, OSError) as error:
        if not isinstance(error, BrokenPipeError):  # the process that started this one is gone
            connection.send(str(error))
