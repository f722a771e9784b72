"""A question to a language model: what is said, which of its tokens count, what a score means.

Letter of its own: L tokens of a completion.
"""

import re
from collections.abc import Sequence

import numpy as np

from stride_jax.data.chat_template import PLAIN, ChatTemplate
from stride_jax.data.dialogues import Message
from stride_jax.data.tokens import Tokenizer
from stride_jax.examples import Examples

_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?")


def opening(tokenizer: Tokenizer, prompt: str, template: ChatTemplate = PLAIN) -> list[int]:
    """Token ids of what stands before the model's answer to a prompt.

    >>> from stride_jax.data.tokens import train_tokenizer
    >>> opening(train_tokenizer(["ab"], 257), "ab")
    [0, 65, 66]
    """
    if not template.source:
        return [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
    text = template.rendered([Message("user", prompt)], answer=True, where="the prompt")
    return tokenizer.encode(text, special=True).tolist()


def question(
    tokenizer: Tokenizer,
    prompt: str,
    completion: str,
    length: int,
    tokens: str = "",
    template: ChatTemplate = PLAIN,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a question, `[1, T]`; −1 for the prompt and tokens that don't count.

    Args:
      tokenizer: of the model.
      prompt, completion: the text; the tokens of the completion are asked about.
      length: T.
      tokens: those that count alone, as in `chosen`; all for "".
      template: how the prompt is written down for the model.

    Raises:
      ValueError: an empty prompt or completion, more tokens than the model reads, or no tokens
        that count.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: write some words for the model to continue")
    if not completion:
        raise ValueError("the completion is empty: give one, or leave it out for the model's own")
    prompt, space = template.asked(prompt)
    before, completion = opening(tokenizer, prompt, template), space + completion
    after = tokenizer.encode(completion)
    said = [*before, *after.tolist()]
    if len(said) - 1 > length:
        raise ValueError(
            f"prompt and completion take {len(before)} + {len(after)} tokens, the mark of the "
            f"start included, but the model reads {length}: shorten them"
        )
    inputs = np.full((1, length), tokenizer.bos_id, np.int32)
    labels = np.full((1, length), -1, np.int32)
    inputs[0, : len(said) - 1] = said[:-1]
    counted = chosen(tokenizer, completion, tokens)
    labels[0, len(before) - 1 : len(said) - 1] = np.where(counted, after, -1)
    return inputs, labels


def questions(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: Sequence[str],
    length: int,
    tokens: str = "",
    template: ChatTemplate = PLAIN,
) -> Examples:
    """Several prompts, each with its completion, as examples; see `question`."""
    rows = [
        question(tokenizer, prompt, completion, length, tokens, template)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return Examples(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def chosen(tokenizer: Tokenizer, completion: str, tokens: str) -> np.ndarray:
    """The tokens of a completion that count, `[L]` bool.

    Args:
      tokenizer: of the model.
      completion: text.
      tokens: a slice by number, such as `0:2` or `-1:`; or words with commas between them, which
        choose every token that holds a part of one of them; all for "".

    Raises:
      ValueError: a choice of no token; the message has the tokens there are.
    """
    ids, starts_L = next(tokenizer.encode_all([completion]))
    if not tokens:
        return np.ones(len(ids), bool)
    counted_L = np.zeros(len(ids), bool)
    if match := _SLICE.fullmatch(tokens):
        first, last = (int(end) if end else None for end in match.groups())
        counted_L[first:last] = True
    else:
        # Parts of one character start together; each holds all of it.
        ends_L = np.maximum(np.append(starts_L[1:], len(completion)), starts_L + 1)
        for word in words_of(tokens):
            for found in re.finditer(re.escape(word), completion):
                counted_L |= (starts_L < found.end()) & (ends_L > found.start())
    if not counted_L.any():
        pieces = ", ".join(f"{i} {piece!r}" for i, piece in enumerate(tokenizer.pieces(ids)))
        raise ValueError(
            f"tokens={tokens!r} choose none of the tokens of {completion!r} ({pieces}): give "
            "words of it, with commas between them, or a slice such as 0:2"
        )
    return counted_L


def words_of(tokens: str) -> list[str]:
    """Words that choose tokens; none for a slice.

    >>> words_of("light, day"), words_of("-1:")
    (['light', 'day'], [])
    """
    if _SLICE.fullmatch(tokens):
        return []
    return [word.strip() for word in tokens.split(",") if word.strip()]


def refuse_absent(tokens: str, completions: Sequence[str]) -> None:
    """Refuse words that no completion has.

    Raises:
      ValueError: names the first of them.
    """
    for word in words_of(tokens):
        if not any(word in completion for completion in completions):
            raise ValueError(
                f"tokens={tokens!r}: {word!r} is not in {' or in '.join(map(repr, completions))}: "
                "give words of the completion"
            )


def meaning(
    name: str, completions: Sequence[str], against: str | None = None, tokens: str = ""
) -> str:
    """What a score is, in words.

    Args:
      name: of the question, `loss` or `margin`.
      completions: texts that are asked about.
      against: another completion.
      tokens: those that count alone.

    >>> meaning("loss", [" light"])
    "by how much the log-probability of ' light' would fall without the text"
    >>> meaning("loss", [" light"], " dark")[:75]
    "what speaks for ' light' and against ' dark': by how much the difference of"
    """
    measure = "log-probability" if name == "loss" else "log odds"
    alike = len(set(completions)) == 1
    said = repr(completions[0]) if alike else "the completions"
    which = "" if not tokens else f", tokens {tokens!r} alone"
    mean = "" if len(completions) == 1 else f", mean of {len(completions)} prompts"
    if against is None:
        return f"by how much the {measure} of {said} would fall without the text{which}{mean}"
    return (
        f"what speaks for {said} and against {against!r}: by how much the difference of their "
        f"{measure} would fall without the text{which}{mean}"
    )
