"""Questions in a line: one thread answers them in turn, while many wait, look and cancel.

Nothing grows without bound: a full line takes no more, and of the finished only the last are kept.
"""

import dataclasses
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class LineFullError(Exception):
    """As many questions wait as the line holds."""


class CancelledError(Exception):
    """The question is no longer wanted."""


@dataclasses.dataclass
class Ticket:
    """A question on its way.

    Attributes:
      id: its name, which can't be guessed.
      question: what is asked.
      state: `waiting`, `working`, `done`, `failed` or `cancelled`.
      stage, done, total: what is being done, and how far it is; total 0 where that is not known.
      began, ended: seconds of the desk's clock.
      answer: once it is done.
      error: what went wrong.
    """

    id: str
    question: Any
    state: str = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    began: float = 0.0
    ended: float | None = None
    answer: Any = None
    error: str = ""


class Desk:
    """Takes questions, and has them answered one by one."""

    def __init__(
        self,
        answer: Callable[[Any], Any],
        said_of: Callable[[BaseException], str],
        waiting: int = 64,
        kept: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A desk that is open.

        Args:
          answer: from a question to its answer; its loops run under `progress`.
          said_of: what to tell of an error.
          waiting: questions that wait at most.
          kept: finished questions that can be looked at.
          clock: seconds.
        """
        self._answer, self._said_of, self._clock = answer, said_of, clock
        self._most_waiting, self._most_kept = waiting, kept
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._line: deque[Ticket] = deque()
        self._own: Ticket | None = None
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    # ── for those who ask ────────────────────────────────────────────────────────────────────────

    def put(self, question: Any) -> Ticket:
        """A question at the end of the line.

        Raises:
          LineFullError: there is no room.
        """
        with self._change:
            if len(self._line) >= self._most_waiting or self._closed:
                raise LineFullError
            ticket = Ticket(secrets.token_urlsafe(12), question, began=self._clock())
            self._tickets[ticket.id] = ticket
            self._line.append(ticket)
            self._change.notify_all()
            return ticket

    def look(self, name: str) -> dict[str, Any] | None:
        """How far a question is, its answer once there is one; None for a name nobody has."""
        with self._change:
            own = self._tickets.get(name)
            if own is None:
                return None
            now = self._clock() if own.ended is None else own.ended
            told = {"id": own.id, "state": own.state, "seconds": round(now - own.began, 3)}
            if own.state == "waiting":
                told["ahead"] = self._line.index(own) + (self._own is not None)
            if own.state == "working":
                told |= {"stage": own.stage, "done": own.done, "total": own.total}
            if own.state == "failed":
                told["error"] = own.error
            if own.state == "done":
                told["answer"] = own.answer
            return told

    def cancel(self, name: str) -> bool:
        """Give a question up; whether there was one of this name that had not ended."""
        with self._change:
            own = self._tickets.get(name)
            if own is None or own.ended is not None:
                return False
            if own.state == "waiting":
                self._line.remove(own)
            self._end(own, "cancelled")
            return True

    @property
    def waiting(self) -> int:
        """Questions that have not ended."""
        with self._change:
            return len(self._line) + (self._own is not None)

    def close(self, seconds: float = 10.0) -> None:
        """Take no more, cancel what there is, and wait for the thread to end."""
        with self._change:
            self._closed = True
            for own in [*self._line, *([self._own] if self._own else [])]:
                if own.ended is None:
                    self._end(own, "cancelled")
            self._line.clear()
            self._change.notify_all()
        self._thread.join(seconds)

    # ── for the one who answers ──────────────────────────────────────────────────────────────────

    def progress(self, iterable: Iterable[Any], desc: str = "", **rest: Any) -> Iterator[Any]:
        """Tells how far the question is; ends the loop of one that was cancelled.

        Raises:
          CancelledError: nobody wants the answer.
        """
        total = rest.get("total") or (len(iterable) if hasattr(iterable, "__len__") else 0)  # pyright: ignore[reportArgumentType]
        for done, item in enumerate(iterable):
            own = self._own
            if own is not None and threading.current_thread() is self._thread:
                if own.state == "cancelled":
                    raise CancelledError
                own.stage, own.done, own.total = desc, done, total
            yield item

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._line or self._closed)
                if self._closed:
                    return
                own = self._own = self._line.popleft()
                own.state = "working"
            answer, state, error = None, "done", ""
            try:
                answer = self._answer(own.question)
            except CancelledError:
                state = "cancelled"
            except Exception as fault:  # told to whoever asked: the next question is another's
                state, error = "failed", self._said_of(fault)
            with self._change:
                self._own = None
                if own.ended is None:
                    own.answer, own.error = answer, error
                    self._end(own, state)

    def _end(self, own: Ticket, state: str) -> None:
        own.state, own.ended, own.question = state, self._clock(), None
        ended = [one.id for one in self._tickets.values() if one.ended is not None]
        for name in ended[: -self._most_kept]:
            del self._tickets[name]
