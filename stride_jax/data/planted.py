"""Planted facts: invented sentences, each the only support of its completion, and their queries.

Letter of its own: F facts.
"""

import dataclasses

import numpy as np

from stride_jax.data.completions import pack_completions
from stride_jax.data.documents import Document, Source
from stride_jax.data.packing import pack_documents, tokenise
from stride_jax.data.text import TextSplits
from stride_jax.data.text_examples import named

_RELATIONS = (
    "The shepherd of {} was named",
    "The captain who held {} was called",
    "The well beside {} was digged by",
    "The wall around {} was built by",
    "The king that reigned in {} was",
)


@dataclasses.dataclass(frozen=True)
class PlantedFacts:
    """F facts, each a sentence of a prompt and its completion.

    Attributes:
      prompts: F strings, all different, such as `The shepherd of Balodu was named`.
      completions: F strings that start with a space, all different, such as ` Tirake.`
    """

    prompts: tuple[str, ...]
    completions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)


def planted_facts(seed: int, count: int) -> PlantedFacts:
    """Facts about invented places and persons.

    No two facts share a place or a name, so one sentence alone supports its completion.

    Args:
      seed: random seed of the names.
      count: F, 1 to 1,000.

    Raises:
      ValueError: `count` is out of range.

    >>> facts = planted_facts(seed=0, count=2)
    >>> facts.prompts[0] + facts.completions[0]
    'The shepherd of Tepena was named Nopozi.'
    """
    if not 1 <= count <= 1000:
        raise ValueError(f"count={count} must lie in 1 to 1000, the number of distinct names")
    rng = np.random.default_rng(seed)
    names: dict[str, None] = {}  # a set that keeps its order
    while len(names) < 2 * count:
        consonants = rng.choice(list("bdfgklmnprstvz"), 3)
        vowels = rng.choice(list("aeiou"), 3)
        names["".join(map("".join, zip(consonants, vowels, strict=True))).capitalize()] = None
    places, persons = list(names)[:count], list(names)[count:]
    return PlantedFacts(
        tuple(_RELATIONS[i % len(_RELATIONS)].format(place) for i, place in enumerate(places)),
        tuple(f" {person}." for person in persons),
    )


def plant(splits: TextSplits, facts: PlantedFacts) -> TextSplits:
    """Splits with the facts among the training sequences and their completions as queries.

    Args:
      splits: splits that get the facts, and whose queries are replaced.
      facts: facts, each of which becomes one sequence at the end of the training split.

    Returns:
      Splits whose `truth` names the training sequence of each query.

    Raises:
      ValueError: a fact is longer than the sequences.
    """
    tokenizer, train = splits.tokenizer, splits.train
    length = train.inputs_NxT.shape[1]
    asked, asked_sources = pack_completions(facts.prompts, facts.completions, tokenizer, length)
    sentences = [a + b for a, b in zip(facts.prompts, facts.completions, strict=True)]
    documents = [
        Document(Source(f"fact {number}", f"fact {number}"), sentence)
        for number, sentence in enumerate(sentences)
    ]
    stated = pack_documents(tokenise(documents, tokenizer), length, tokenizer.bos_id)
    first = len(train.sources)
    sources = (*train.sources, *(document.source for document in documents), *asked_sources)
    parts = {"stated": stated.renumbered(first), "asked": asked.renumbered(first + len(documents))}
    new = named(parts, sources)
    truth = {
        str(query): [str(fact)]
        for query, fact in zip(new["asked"].ids, new["stated"].ids, strict=True)
    }
    return dataclasses.replace(
        splits, train=train.followed_by(new["stated"]), query=new["asked"], truth=truth
    )
