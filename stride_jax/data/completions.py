"""Sequences of which some passages count: what is asked, and what is fine-tuned on.

Letters of its own: L tokens of all documents in a row, J documents.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from stride_jax.data.documents import Document, Source, joined
from stride_jax.data.packing import Packed, Tokenised, pack_documents, tokenise
from stride_jax.data.tokens import Tokenizer

COMPLETION = "completion"
"""Name of passages that count, or the start of it."""


def count_completions(
    packed: Packed, tokenised: Tokenised, documents: Sequence[Document]
) -> Packed:
    """The same sequences with weight on the tokens of completions alone.

    Args:
      packed: one sequence per document.
      tokenised: tokens of the documents.
      documents: of passages whose names tell which of them count.
    """
    counts = [[label.startswith(COMPLETION) for label in d.source.labels] for d in documents]
    first_J = np.cumsum([0, *map(len, counts)])[:-1]
    own_L = np.concatenate(counts)[first_J[tokenised.document_L] + tokenised.passage_L]
    length = packed.inputs_NxT.shape[1]
    place_NxT = np.minimum(tokenised.starts_J[:, None] + np.arange(length) + 1, len(own_L) - 1)
    weights_NxT = (packed.weights_NxT * own_L[place_NxT]).astype(np.float32)
    return dataclasses.replace(packed, weights_NxT=weights_NxT)


def pack_completions(
    prompts: Sequence[str], completions: Sequence[str], tokenizer: Tokenizer, length: int
) -> tuple[Packed, tuple[Source, ...]]:
    """Sequences of a prompt and its completion, with weight on the completion's tokens alone.

    The text is tokenised as a whole, as in training; a token that straddles the two belongs to the
    prompt.

    Args:
      prompts: Q strings, possibly empty.
      completions: Q strings.
      tokenizer: tokenizer of the model.
      length: T.

    Returns:
      The sequences, and their sources with the passages `prompt` and `completion`.

    Raises:
      ValueError: a text is longer than T, or a completion has no token of its own.
    """
    documents = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        name = f"query {number}"
        if prompt:
            source = Source(name, name, ("prompt", COMPLETION))
            documents.append(joined(source, [prompt, completion], separator=""))
        else:
            documents.append(Document(Source(name, name, (COMPLETION,)), completion))
    tokenised = tokenise(documents, tokenizer)
    sizes = tokenised.sizes_J
    if (longest := int(sizes.max())) > length + 1:
        raise ValueError(
            f"query {int(sizes.argmax())} takes {longest} tokens, its mark included, and "
            f"{length + 1} fit: shorten its prompt"
        )
    packed = pack_documents(tokenised, length, tokenizer.bos_id)
    packed = count_completions(packed, tokenised, documents)
    if (empty := np.flatnonzero(packed.weights_NxT.sum(axis=1) == 0)).size:
        raise ValueError(
            f"completion {completions[empty[0]]!r} of query {empty[0]} has no token of its own: "
            "give it some text that starts with a space"
        )
    return packed, tuple(document.source for document in documents)
