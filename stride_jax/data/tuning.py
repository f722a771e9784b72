"""From settings to the examples of fine-tuning: one sequence a row, its completions counted."""

import dataclasses
import hashlib
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from stride_jax.data import text_files
from stride_jax.data.chat_template import OWN, ChatTemplate, marks_beside, template_beside
from stride_jax.data.completions import COMPLETION, count_completions
from stride_jax.data.dialogues import SUFFIXES, Columns, Dialogue, is_saved, read_dialogues
from stride_jax.data.documents import Document, files_of
from stride_jax.data.packing import Packed, pack_documents, tokenise
from stride_jax.data.text import ROLES, TextSplits
from stride_jax.data.text_examples import TextExamples, named
from stride_jax.data.tokens import Tokenizer, load_tokenizer, train_tokenizer
from stride_jax.runtime.files import fingerprint

_NAMED = 5  # rows that a warning names


@dataclasses.dataclass(frozen=True)
class TuningSettings:
    """Prompts with completions, or chats, to fine-tune on.

    Attributes:
      path: file or folder (`.jsonl`, Parquet, or what Hugging Face's datasets saved).
      query_path: file or folder of the queries; empty: rows of `path` that are held out.
      prompt_column, completion_column: columns of the two texts.
      messages_column: column of a chat, a list of `{"role": …, "content": …}`.
      id_column: column of a row's name; it may be missing.
      template: `chat` for the chat template beside the tokenizer, or the path of a Jinja file;
        empty: a completion follows its prompt as it is.
      stop: text that ends a completion where there is no template.
      tokenizer: path of a tokenizer.json; empty: the one of `model.init_from`, or one of
        `vocab_size` tokens that is trained on the training rows.
      vocab_size: number of token ids of a tokenizer that is trained.
      length: T, tokens per sequence; what exceeds it is cut.
      max_train: largest number of training rows, drawn at random; 0 for all.
      num_calibration, num_query: numbers of rows held out, each drawn at random; with `query_path`
        the largest number of queries, 0 for all.
      seed: random seed of the draws.
    """

    path: str
    query_path: str = ""
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    messages_column: str = "messages"
    id_column: str = "id"
    template: str = ""
    stop: str = "\n"
    tokenizer: str = ""
    vocab_size: int = 1024
    length: int = 256
    max_train: int = 0
    num_calibration: int = 100
    num_query: int = 100
    seed: int = 0

    @property
    def columns(self) -> Columns:
        """Names of the columns."""
        return Columns(
            self.prompt_column, self.completion_column, self.messages_column, self.id_column
        )


def load_tuning(settings: TuningSettings, workdir: str | os.PathLike[str]) -> TextSplits:
    """Read, tokenise and split rows, once; the same settings and files are read back.

    Args:
      settings: rows, template and splits.
      workdir: folder in whose `data` folder results are stored.

    Returns:
      Splits of one sequence per row, in the order of the files; weights count completions alone.

    Raises:
      ValueError: files, columns or rows that can't be used, a template that does not fit, fewer
        rows than are held out, or no row with room for a completion; names the row and the remedy.

    Warns:
      UserWarning: rows whose completion does not fit into T tokens, which are left out or cut, with
        their number and names; or rows of the same content.
    """
    _check(settings)
    template = template_of(settings)
    folder = pathlib.Path(workdir) / "data" / f"tuning-{_fingerprint(settings, template)}"
    if not text_files.is_complete(folder):
        tokenizer, splits = _split(settings, template)
        text_files.write(folder, tokenizer, splits, settings)
    return TextSplits(**text_files.read(folder, ROLES), folder=folder)


def read_rows(settings: TuningSettings, path: str, tokenizer: Tokenizer) -> TextExamples:
    """The rows of another file as examples, written down and tokenised as settings say.

    Args:
      settings: columns, template and length.
      path: the file or folder.
      tokenizer: of the model.

    Raises:
      ValueError: as `load_tuning`.

    Warns:
      UserWarning: as `load_tuning`.
    """
    template, rows = template_of(settings), read_dialogues(path, settings.columns)
    if template.source:
        _refuse_marks(rows, tokenizer)
    documents, where = [document(one, template) for one in rows], [one.where for one in rows]
    packed = pack(documents, where, tokenizer, settings.length, bool(template.source))
    return named({"rows": packed}, tuple(one.source for one in documents))["rows"]


def template_of(settings: TuningSettings) -> ChatTemplate:
    """The template that settings name.

    Raises:
      ValueError: there is none.
    """
    if not settings.template:
        return ChatTemplate(stop=settings.stop)
    if settings.template == OWN:
        if not settings.tokenizer:
            raise ValueError(
                f"template={OWN!r} is the one beside a tokenizer, and none is given: name the "
                "tokenizer, or start from a model that has one (model.init_from)"
            )
        return template_beside(settings.tokenizer)
    path = pathlib.Path(settings.template)
    if not path.is_file():
        raise ValueError(f"no template file {path}: give the path of a Jinja file, or {OWN!r}")
    return ChatTemplate(path.read_text(encoding="utf-8"), marks_beside(settings.tokenizer))


def _check(settings: TuningSettings) -> None:
    if not settings.path:
        raise ValueError("tuning.path is empty: give a .jsonl or Parquet file, or a folder")
    least = {"length": 2, "max_train": 0, "num_calibration": 1}
    for name, smallest in {**least, "num_query": 0 if settings.query_path else 1}.items():
        if (value := getattr(settings, name)) < smallest:
            raise ValueError(f"{name}={value} must be at least {smallest}")


def _fingerprint(settings: TuningSettings, template: ChatTemplate) -> str:
    """Hash of the settings and of what their files hold, wherever these lie."""
    parts = [text_files.FORMAT, template]
    for path in (settings.path, settings.query_path):
        for file in _files(path) if path else []:
            with open(file, "rb") as content:
                digest = hashlib.file_digest(content, "blake2b").hexdigest()
            parts += [file.name, os.path.relpath(file, path), digest]
    if settings.tokenizer:
        parts.append(load_tokenizer(settings.tokenizer).core.to_str())
    plain = dataclasses.replace(settings, path="", query_path="", tokenizer="", template="")
    return fingerprint(plain, *parts)


def _files(path: str) -> list[pathlib.Path]:
    if is_saved(path):
        return sorted(own for own in pathlib.Path(path).rglob("*") if own.is_file())
    return files_of(path, SUFFIXES)


def _split(settings: TuningSettings, template: ChatTemplate) -> tuple[Tokenizer, dict]:
    """The tokenizer, and the sequences of each role."""
    rows = read_dialogues(settings.path, settings.columns)
    own = read_dialogues(settings.query_path, settings.columns) if settings.query_path else []
    order = np.random.default_rng(settings.seed).permutation(len(rows))
    held = settings.num_calibration + (0 if own else settings.num_query)
    if held >= len(rows):
        raise ValueError(
            f"num_query={settings.num_query} and num_calibration={settings.num_calibration} leave "
            f"nothing of the {len(rows)} rows of {settings.path} to train on: hold out fewer"
        )
    query, calibration, train = np.split(order, [held - settings.num_calibration, held])
    chosen = {
        "train": [rows[i] for i in np.sort(train[: settings.max_train or None])],
        "calibration": [rows[i] for i in np.sort(calibration)],
        "query": _some(own, settings) if own else [rows[i] for i in np.sort(query)],
    }
    texts = {
        role: [document(one, template) for one in dialogues] for role, dialogues in chosen.items()
    }
    if settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer)
    else:
        tokenizer = train_tokenizer([one.text for one in texts["train"]], settings.vocab_size)
    if template.source:
        for dialogues in chosen.values():
            _refuse_marks(dialogues, tokenizer)
    parts, sources = {}, []
    for role, documents in texts.items():
        where = [one.where for one in chosen[role]]
        packed = pack(documents, where, tokenizer, settings.length, bool(template.source))
        parts[role] = packed.renumbered(len(sources))
        sources += [one.source for one in documents]
    return tokenizer, named(parts, tuple(sources))


def _some(own: Sequence[Dialogue], settings: TuningSettings) -> list[Dialogue]:
    """The queries, or so many of them, in their order."""
    order = np.random.default_rng(settings.seed).permutation(len(own))
    return [own[i] for i in np.sort(order[: settings.num_query or None])]


def _refuse_marks(dialogues: Sequence[Dialogue], tokenizer: Tokenizer) -> None:
    """Refuse messages that spell special tokens, and so would end their turn or forge another."""
    for dialogue in dialogues:
        for message in dialogue.messages:
            if spelled := [mark for mark in tokenizer.marks if mark in message.content]:
                raise ValueError(
                    f"{dialogue.where}: a message spells the special token {spelled[0]!r}, which "
                    "the chat template would take for a mark: drop the row, or spell it otherwise"
                )


def document(dialogue: Dialogue, template: ChatTemplate) -> Document:
    """The text of a dialogue, whose passages are prompts and completions in turn.

    Raises:
      ValueError: a chat without a template, or one that the template can't write.
    """
    messages = dialogue.messages
    plain = len(messages) == 2 and messages[0].role == "user"
    if not template.source and not plain:
        raise ValueError(
            f"{dialogue.where} is a chat of {len(messages)} messages: give template={OWN!r}, or "
            "the path of a Jinja file, that makes one text of them"
        )
    parts = [(own, text) for own, text in template.parts(messages, dialogue.where) if text]
    starts = np.cumsum([0, *(len(text) for _, text in parts[:-1])]).tolist()
    several = sum(own for own, _ in parts) > 1
    labels, number = [], 1
    for own, _ in parts:
        labels.append((COMPLETION if own else "prompt") + (f" {number}" if several else ""))
        number += own
    source = dataclasses.replace(dialogue.source, labels=tuple(labels))
    return Document(source, "".join(text for _, text in parts), tuple(starts))


def pack(
    documents: Sequence[Document],
    where: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    special: bool = False,
) -> Packed:
    """Sequences of T tokens with weight on completions; rows without any are left out.

    Args:
      documents: one per row; passages whose names begin with `completion` count.
      where: file and row of each, for messages.
      tokenizer: of the model.
      length: T.
      special: whether the texts bring special tokens, as a chat template writes them.

    Raises:
      ValueError: no row has room for a completion, or a message spells a special token.

    Warns:
      UserWarning: completions that are cut, or cut away.
    """
    tokenised = tokenise(documents, tokenizer, special=special)
    packed = pack_documents(tokenised, length, tokenizer.bos_id)
    packed = count_completions(packed, tokenised, documents)
    counted_N = packed.weights_NxT.sum(axis=1) > 0
    if not counted_N.any():
        raise ValueError(
            f"of {len(documents)} rows, such as {where[0]}, none has a completion within "
            f"{length} tokens: raise length, or shorten the prompts"
        )
    cut_N = counted_N & (tokenised.sizes_J > length + 1)
    for rows, what in ((~counted_N, "left out: no token of their completion fits"),
                       (cut_N, "cut: not all of their completion fits")):  # fmt: skip
        if (these := np.flatnonzero(rows)).size:
            names = ", ".join(str(where[i]) for i in these[:_NAMED])
            more = " …" if these.size > _NAMED else ""
            warnings.warn(
                f"{these.size} of {len(documents)} rows are {what} into length={length} "
                f"({names}{more})",
                stacklevel=2,
            )
    return packed.take(np.flatnonzero(counted_N))
