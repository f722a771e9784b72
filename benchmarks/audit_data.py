"""A training set with problems of a benchmark leaked into it, and what is known of each.

Letters of its own: problems are numbered as in the file; a plan names them, and nothing else.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from benchmarks import instructions
from benchmarks.instructions import asked, read_lines, write_lines

COPIES = (1, 4, 16, 100)
KINDS = ("exact", "reworded", "shifted")

_TASKS_LONGEST = 360
"""Characters of the longest prompt with its completion: what the model's length holds."""

_WORDS = {
    "how many": "what number of", "how much": "what amount of", "what is": "find",
    "find": "work out", "total": "overall", "each": "every", "cost": "price", "buys": "purchases",
    "sells": "sold", "sold": "sells", "buy": "purchase", "number": "count", "person": "someone",
    "man": "worker", "men": "workers", "boy": "child", "train": "railway train", "car": "vehicle",
    "speed": "pace", "ratio": "proportion", "average": "mean", "profit": "gain", "gain": "profit",
    "loss": "deficit", "remaining": "left over", "required": "needed", "took": "needed",
    "takes": "needs", "can do": "finishes", "work": "job", "sum": "total", "days": "full days",
    "hours": "full hours", "distance": "way", "length": "extent", "students": "pupils",
    "school": "college", "money": "cash", "spends": "uses", "salary": "wage", "age": "years",
    "then": "so", "if": "given that", "the": "this", "a": "one", "of": "out of", "is": "equals",
}  # fmt: skip
"""Words and what stands for them in a problem that was reworded."""

_PATTERN = re.compile(r"\b(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")\b")


@dataclasses.dataclass(frozen=True)
class LeakSettings:
    """How many rows there are, and what is leaked.

    Attributes:
      background: rows of instruction tasks that have nothing to do with the benchmark.
      alike: word problems besides, so that clean problems have something to be taken for.
      rate: leaked problems, as a share of these rows.
      clean: problems of the benchmark that are not leaked.
      known_clean: clean problems that the audit is told of.
      seed: random seed of all draws.
    """

    background: int = 3000
    alike: int = 1000
    rate: float = 0.01
    clean: int = 440
    known_clean: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Leaked:
    """A problem that was leaked: its name, the number of its copies, and of what kind they are."""

    name: str
    copies: int
    kind: str


def reworded(question: str, rng: np.random.Generator) -> str:
    """A question in other words: most phrases of the table, a tenth of the other words left out.

    >>> reworded("what is the speed of the train ?", np.random.default_rng(1))
    'find the pace this railway train ?'
    """
    text = _PATTERN.sub(lambda m: _WORDS[m[0]] if rng.random() < 0.8 else m[0], question)
    words = text.split()
    kept = rng.random(len(words)) >= 0.1
    return " ".join(w for w, keep in zip(words, kept, strict=True) if keep or w.isdigit())


def copy_of(
    problem: dict[str, str], kind: str, others: Sequence[dict[str, str]], rng: np.random.Generator
) -> dict[str, str]:
    """A training row that gives a problem away, `prompt` and `completion`."""
    own = asked(problem)
    if kind == "exact":
        return own
    if kind == "reworded":
        return {
            "prompt": reworded(problem["question"], rng) + "\n",
            "completion": f"{problem['formula']} = {problem['answer']}",
        }
    lead = others[int(rng.integers(len(others)))]["question"].split()[-int(rng.integers(8, 24)) :]
    words = problem["question"].split()
    return {
        "prompt": " ".join([*lead, *words[len(words) // 4 :]]) + "\n",
        "completion": own["completion"],
    }


def write(source: pathlib.Path, out: pathlib.Path, settings: LeakSettings) -> list[Leaked]:
    """Write `train.jsonl`, the same rows without leaks as `unleaked.jsonl`, `problems.jsonl` and
    `clean.jsonl`; and say what was leaked.

    Args:
      source: folder of `instructions.write`.
      out: folder of the files.
      settings: how many, and what is leaked.
    """
    instructions.write(source)
    rng = np.random.default_rng(settings.seed)
    tasks = [row for row in read_lines(source / "tasks.jsonl")
             if len(row["prompt"]) + len(row["completion"]) <= _TASKS_LONGEST]  # fmt: skip
    problems = _unalike(read_lines(source / "problems.jsonl"), rng)
    rows = [tasks[i] for i in rng.choice(len(tasks), settings.background, replace=False)]
    count = round(settings.rate * (settings.background + settings.alike))
    sizes = (settings.alike, count, settings.clean, settings.known_clean)
    ends = np.cumsum(sizes)
    if ends[-1] > len(problems):
        raise ValueError(f"{ends[-1]} problems are asked for, and {len(problems)} are there")
    alike, leaked, clean, known = np.split(np.array(problems[: ends[-1]]), ends[:-1])
    for own in alike.tolist():
        rows.append({"id": own["id"], "task": "word problems", **asked(own)})
    write_lines(out / "unleaked.jsonl", [rows[i] for i in rng.permutation(len(rows))])
    plan = []
    for number, own in enumerate(leaked.tolist()):
        one = Leaked(own["id"], COPIES[number % len(COPIES)],
                     KINDS[number // len(COPIES) % len(KINDS)])  # fmt: skip
        plan.append(one)
        for copy in range(one.copies):
            made = copy_of(own, one.kind, alike.tolist(), rng)
            rows.append({"id": f"leak {one.name} {copy}", "task": "leak", **made})
    order = rng.permutation(len(rows))
    write_lines(out / "train.jsonl", [rows[i] for i in order])
    both = [*leaked.tolist(), *clean.tolist()]
    write_lines(out / "problems.jsonl", [{"id": own["id"], **asked(own)} for own in both])
    write_lines(out / "clean.jsonl", [{"id": own["id"], **asked(own)} for own in known.tolist()])
    return plan


def _unalike(problems: list[dict[str, str]], rng: np.random.Generator) -> list[dict[str, str]]:
    """Problems in random order, of which no two share an opening or a formula of some length: a
    problem that is another with other numbers is neither clean nor leaked."""
    kept, seen = [], set()
    for i in rng.permutation(len(problems)):
        own = problems[i]
        words = [w for w in own["question"].split() if not any(c.isdigit() for c in w)]
        marks = {" ".join(words[:8]), " ".join(words[-8:]), own["formula"]}
        if len(words) >= 12 and not marks & seen:
            kept.append(own)
            seen |= marks
    return kept
