"""Processes of this machine as one job: one failure ends all, a signal lets all save."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from stride_jax.run.launching.settings import SAVING_SECONDS
from stride_jax.runtime.files import appended
from stride_jax.runtime.screen import visible

PREEMPTED = os.EX_TEMPFAIL  # 75: saved, the same command continues


@dataclasses.dataclass(frozen=True)
class Grace:
    """Seconds between SIGTERM and SIGKILL.

    Attributes:
      saving: seconds after a preemption.
      failing: seconds after a failed process, without which the others can't save.
    """

    saving: float = float(SAVING_SECONDS)
    failing: float = 10.0


def supervise(commands: Sequence[Sequence[str]], logs: pathlib.Path, grace: Grace = Grace()) -> int:
    """Run commands side by side until all have ended.

    The first one's output goes to the terminal too. SIGTERM, SIGINT and SIGHUP are passed on as
    SIGTERM, the signal after which a run saves and exits with 75. Call it from the main thread.

    Args:
      commands: command of each process, as words.
      logs: folder for `process-<i>.log`; existing ones are appended to.
      grace: seconds that a process may take to stop.

    Returns:
      0 if every process returned it, else the first other code; 128 + n for a death by signal n.
    """
    logs.mkdir(parents=True, exist_ok=True)
    children: list[subprocess.Popen[bytes]] = []
    with _signals() as received, contextlib.ExitStack() as stack:
        try:
            for i, words in enumerate(commands):
                log = stack.enter_context(appended(logs / f"process-{i}.log"))
                children.append(_start(words, log, shown=i == 0, stack=stack))
            return _watch(children, received, logs, grace)
        finally:
            _kill(children)  # no process is left behind


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that grows by every signal to stop; ignored ones (nohup) stay ignored."""
    received: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    old = {kind: signal.getsignal(kind) for kind in kinds}
    watched = [kind for kind in kinds if old[kind] != signal.SIG_IGN]
    for kind in watched:
        signal.signal(kind, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for kind in watched:
            signal.signal(kind, old[kind])


def _start(
    words: Sequence[str], log: IO[bytes], shown: bool, stack: contextlib.ExitStack
) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if shown else log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on once
    )
    if child.stdout is not None:
        copier = threading.Thread(target=_copy, args=(child.stdout, log), daemon=True)
        copier.start()
        stack.callback(copier.join, 5.0)
    return child


def _copy(pipe: IO[bytes], log: IO[bytes]) -> None:
    with pipe:
        while piece := os.read(pipe.fileno(), 1 << 16):
            log.write(piece)
            with contextlib.suppress(OSError):  # the terminal may be gone; the run continues
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()


def _watch(
    children: Sequence[subprocess.Popen[bytes]],
    received: Sequence[int],
    logs: pathlib.Path,
    grace: Grace,
) -> int:
    result, deadline = 0, None
    while True:
        ended = [child.poll() for child in children]
        if result == 0:
            bad = next((i for i, code in enumerate(ended) if code), None)
            if bad is not None:
                result = _shell_code(ended[bad] or 0)
                line = f"process {bad} ended with code {result}: {logs}/process-{bad}.log"
                print(visible(line, kept=""), flush=True)
        if None not in ended:
            return result
        if deadline is None and (received or result):
            saving = bool(received) or result == PREEMPTED
            deadline = time.monotonic() + (grace.saving if saving else grace.failing)
            for child in children:
                child.terminate()
        if deadline is not None and time.monotonic() > deadline:
            _kill(children)
        time.sleep(0.05)


def _shell_code(code: int) -> int:
    """As a shell gives it: `Popen` has -n for a death by signal n.

    >>> _shell_code(75), _shell_code(-15)
    (75, 143)
    """
    return code if code >= 0 else 128 - code


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those still there, with the processes that they started."""
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
