"""What a model is fine-tuned on: prompts with completions, and chats, from the user's files."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stride_jax.data.documents import Source, files_of, json_rows
from stride_jax.runtime.files import naming, reading, refuse_endless
from stride_jax.runtime.machine import refuse_unpacked

ROLES = ("system", "user", "assistant")
SUFFIXES = (".jsonl", ".parquet")
_ROWS = 16
_SAVED = ("state.json", "dataset_dict.json")


class Message(NamedTuple):
    """What one side says.

    Attributes:
      role: `system`, `user` or `assistant`; a prompt is the user's, a completion the assistant's.
      content: the text.
    """

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One example of fine-tuning: the last message, and all others of the assistant, are trained.

    Attributes:
      source: its id, and the other columns of its row as metadata.
      messages: what was said, in order; the last one is the assistant's.
      where: file and row, for messages of errors.
    """

    source: Source
    messages: tuple[Message, ...]
    where: str


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a row.

    Attributes:
      prompt, completion: of the two texts.
      messages: of a list of `{"role": …, "content": …}`; where a row has it, the two are not read.
      id: of the row's name; rows without are named by file and number.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"
    id: str = "id"


def read_dialogues(path: str | os.PathLike[str], columns: Columns = Columns()) -> list[Dialogue]:
    """Read prompts with completions, or chats.

    Args:
      path: a `.jsonl` or Parquet file, a folder of them, or a folder that Hugging Face's
        `Dataset.save_to_disk` wrote.
      columns: names of the columns.

    Returns:
      One dialogue per row, in the order of the files' names and rows.

    Raises:
      ValueError: no such file, a missing column (lists those there are), an empty completion, roles
        out of order, or an id that occurs twice; names file and row.
    """
    dialogues = []
    for name, where, row in _named_rows(path):
        messages = _messages(row, where, columns)
        own = row.pop(columns.id, None)
        identity = name if own is None else str(own)
        dialogues.append(Dialogue(Source(identity, identity, metadata=row), messages, where))
    if not dialogues:
        raise ValueError(f"{path} holds no row: put prompts and completions into it")
    counts = collections.Counter(dialogue.source.id for dialogue in dialogues)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{len(repeated)} ids occur more than once in {path}, such as {repeated[0]!r}: ids "
            "must be unique, so change them or name another id_column"
        )
    return dialogues


def as_row(dialogue: Dialogue, columns: Columns = Columns()) -> dict[str, Any]:
    """A dialogue as the row that it was read from; chats as lists of messages.

    >>> said = (Message("user", "2 + 2?"), Message("assistant", "4"))
    >>> as_row(Dialogue(Source("a", "a"), said, "line 1"))
    {'id': 'a', 'prompt': '2 + 2?', 'completion': '4'}
    """
    messages, named = dialogue.messages, {columns.id: dialogue.source.id}
    if [message.role for message in messages] == ["user", "assistant"]:
        texts = {columns.prompt: messages[0].content, columns.completion: messages[1].content}
    else:
        texts = {columns.messages: [message._asdict() for message in messages]}
    return named | texts | dict(dialogue.source.metadata)


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is what Hugging Face's `save_to_disk` wrote."""
    return any((pathlib.Path(path) / mark).is_file() for mark in _SAVED)


def _named_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, place and columns of each row."""
    place = pathlib.Path(path)
    if is_saved(place):
        for number, row in enumerate(_saved_rows(place)):
            yield f"{place.name}#{number}", f"{place} row {number}", row
        return
    for file in files_of(place, SUFFIXES):
        refuse_endless(file)
        inside = file.name if file == place else file.relative_to(place).as_posix()
        rows = _parquet_rows if file.suffix.lower() == ".parquet" else json_rows
        for number, (where, row) in enumerate(rows(file)):
            yield f"{inside}#{number}", where, row


def _parquet_rows(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A few rows at a time, so that a value that is stored once and stands everywhere is refused
    before it fills the memory."""
    import pyarrow.parquet as pq

    size, held, number = file.stat().st_size, 0, 0
    with (
        reading(file, "Parquet", "write it again or remove it"),
        pq.ParquetFile(file, page_checksum_verification=True) as own,
    ):
        for batch in own.iter_batches(_ROWS):
            held += batch.nbytes
            refuse_unpacked(held, size, f"its first {number + batch.num_rows} rows")
            for row in batch.to_pylist():
                yield f"{file} row {number}", row
                number += 1


def _saved_rows(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{folder} was written by Hugging Face's datasets: pip install datasets to read it, or "
            "write it with to_parquet"
        ) from error
    with naming(folder, "a saved dataset", "write it again with save_to_disk"):
        saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.DatasetDict):
        raise ValueError(f"{folder} holds the splits {sorted(saved)}: give the folder of one")
    yield from (dict(row) for row in saved)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _messages(row: dict[str, Any], where: str, columns: Columns) -> tuple[Message, ...]:
    """What is said in a row, whose columns are taken out of it."""
    if row.get(columns.messages) is not None:
        said = row.pop(columns.messages)
        if isinstance(said, str):  # Parquet files often hold chats as JSON
            said = _parsed(said, f"{where}: column {columns.messages!r}")
        return _chat(said, where, columns.messages)
    for name in (columns.prompt, columns.completion):
        if name not in row:
            raise ValueError(
                f"{where} has no column {name!r}, and none of {columns.messages!r}: name "
                f"prompt_column and completion_column, or messages_column, of {sorted(row)}"
            )
    texts = {name: row.pop(name) for name in (columns.prompt, columns.completion)}
    for name, text in texts.items():
        _refuse_no_text(text, f"{where}: column {name!r}")
    if not texts[columns.completion].strip():
        raise ValueError(
            f"{where}: column {columns.completion!r} is empty, so there is nothing to learn: give "
            "a completion, or drop the row"
        )
    return (
        Message("user", texts[columns.prompt]),
        Message("assistant", texts[columns.completion]),
    )


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{what} is text that is not JSON ({error}): give a list of messages"
        ) from error


def _chat(said: Any, where: str, column: str) -> tuple[Message, ...]:
    what = f"{where}: column {column!r}"
    if not isinstance(said, list) or not all(isinstance(one, Mapping) for one in said):
        raise ValueError(f"{what} must be a list of {{'role': …, 'content': …}}, not {said!r:.60}")
    messages = []
    for number, one in enumerate(said):
        role, content = one.get("role"), one.get("content")
        if role not in ROLES:
            raise ValueError(
                f"{what}, message {number}: role={role!r} must be one of {list(ROLES)}; leave such "
                "rows out, or rename the role"
            )
        _refuse_no_text(content, f"{what}, message {number}")
        if role == "assistant" and not content.strip():
            raise ValueError(f"{what}, message {number}: the assistant says nothing: drop the row")
        messages.append(Message(role, content))
    if not messages or messages[-1].role != "assistant":
        last = messages[-1].role if messages else None
        raise ValueError(
            f"{what} must end with what the assistant says, which is trained on, but ends with "
            f"{last!r}: drop the last message, or the row"
        )
    return tuple(messages)


def _refuse_no_text(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{what} must hold text, not {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds {error.object[error.start : error.end]!r}, half of a character that "
            "UTF-8 can't write: mend the text"
        ) from error
