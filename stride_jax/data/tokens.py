"""Byte-level BPE: trained, saved, loaded, and token offsets in the text (HF `tokenizers`).

Letter of its own: L tokens of a text.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stride_jax.runtime.files import atomic_path, reading

if TYPE_CHECKING:
    import tokenizers

BOS = "<|bos|>"
# Marks of a document's start in the tokenizer files of others; the first one present is used.
_STARTS = (BOS, "<|begin_of_text|>", "<s>", "<|endoftext|>")
_SMALLEST = 256 + 1  # every byte, and the mark of a document's start


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back; `decode(encode(text)) == text`.

    Attributes:
      core: the HF tokenizer.
      bos_id: id of the token that marks a document's start. No text encodes to it.
    """

    core: "tokenizers.Tokenizer"
    bos_id: int

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the mark included."""
        return self.core.get_vocab_size()

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Token ids `[L]` int32 of one text, without a mark at its start; see `encode_all`.

        Raises:
          ValueError: half of a character, as a terminal passes bytes that are not UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end]
            raise ValueError(f"the text holds {half!r}, no character: give it in UTF-8") from error
        return next(self.encode_all([text], special))[0]

    def encode_all(
        self, texts: Sequence[str], special: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each text its token ids `[L]`, and each token's first character `[L]`, int32.

        Args:
          texts: any number of texts.
          special: whether what spells a special token is one; else it is text like all other.
        """
        core = self._reading_marks if special else self.core
        # A thousand at a time: encodings take far more memory than their ids.
        for first in range(0, len(texts), 1000):
            batch = list(texts[first : first + 1000])
            for encoding in core.encode_batch(batch, add_special_tokens=False):
                starts = [start for start, _ in encoding.offsets]
                yield np.array(encoding.ids, np.int32), np.array(starts, np.int32)

    @functools.cached_property
    def _reading_marks(self) -> "tokenizers.Tokenizer":
        """The same tokenizer, for which special tokens in a text are special."""
        core = type(self.core).from_str(self.core.to_str())
        core.encode_special_tokens = False
        return core

    @functools.cached_property
    def marks(self) -> tuple[str, ...]:
        """How special tokens are spelled."""
        added = self.core.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    def ends(self, marked: bool) -> frozenset[int]:
        """Ids that end a text: the mark of the next one, or any mark where texts hold marks."""
        if not marked:
            return frozenset((self.bos_id,))
        ids = (self.core.token_to_id(mark) for mark in self.marks)
        return frozenset(i for i in ids if i is not None)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Text of token ids; marks are left out."""
        return self.core.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_lines(self, ids: np.ndarray) -> str:
        """Text of token ids `[L]`, on a new line after each mark but one at the very start."""
        documents = np.split(ids, np.flatnonzero(ids == self.bos_id))
        return "\n".join(self.decode(part) for part in documents if len(part))

    def pieces(self, ids: Iterable[int] | np.ndarray) -> list[str]:
        """Text of each token by itself; parts of a character that was split show as U+FFFD."""
        return [self.core.decode([int(i)], skip_special_tokens=False) for i in ids]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`, atomically."""
        with atomic_path(path) as temporary:
            self.core.save(str(temporary))


def _wrapped(core: Any, where: str) -> Tokenizer:
    marks = [core.token_to_id(name) for name in _STARTS if core.token_to_id(name) is not None]
    if not marks:
        raise ValueError(
            f"{where} has none of {list(_STARTS)}, one of which must mark a document's start: "
            f"add {BOS!r} to it as a special token"
        )
    # The mark's spelling within a document is text, not a document's start.
    core.encode_special_tokens = True
    core.no_padding()
    core.no_truncation()
    return Tokenizer(core, marks[0])


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE; the same texts give the same tokenizer.

    Args:
      texts: texts of the training documents alone.
      vocab_size: number of token ids: 256 bytes, the mark `BOS`, and merges.

    Raises:
      ValueError: `vocab_size` is too small for the bytes, or larger than the texts give merges for.
    """
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < _SMALLEST:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: {_SMALLEST} are 256 bytes and {BOS!r}; "
            "use 512 or more"
        )
    core = Core(models.BPE())
    # Offsets that include a word's leading space keep every character inside one token.
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer, length=len(texts))
    if (got := core.get_vocab_size()) < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too large: {len(texts)} texts of "
            f"{sum(map(len, texts))} characters give {got} tokens; use {got} or fewer"
        )
    return _wrapped(core, "the trained tokenizer")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a `tokenizer.json`, ours or another's.

    Raises:
      ValueError: it can't be read, or has no token that marks a document's start.
    """
    from tokenizers import Tokenizer as Core

    try:
        with (
            reading(path, "an HF tokenizer.json", "give the file of a tokenizer"),
            open(path, encoding="utf-8") as file,
        ):
            core = Core.from_str(file.read())
    except FileNotFoundError as error:
        raise ValueError(f"no tokenizer file {path}: give the path of one") from error
    return _wrapped(core, str(path))
