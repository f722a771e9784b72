"""Instruction tasks and word problems that a package carries: what is tuned on, chosen and leaked.

    python -m benchmarks.instructions --out=data/instructions

Streams the source package of `bigbench` 1.0.0 (358 MB, fetched with pip; Apache-2.0), which is not
installed, and writes `tasks.jsonl`, the 61 named tasks of Natural Instructions, and
`problems.jsonl`, 7,688 word problems with worked solutions. Of these, in a size that small models
learn from: `base.jsonl`, rows of tasks with long answers as text for a base model; `rows.jsonl` and
`solutions.jsonl`, other rows and the problems as prompts and completions to fine-tune it on. Its
authors ask that none of it is trained on by chance: nothing of it belongs into the repository.
"""

import argparse
import itertools
import json
import pathlib
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.packages import bigbench
from stride_jax.runtime.files import atomic_path

LONGEST = 330
"""Characters of a row, its task's name included, that a model of 96 tokens holds."""

SHORT = 24
"""Characters of the median completion of a task whose answers are short: right or wrong."""

_BASE = 14_000  # rows of text
_ROWS = 5_000  # rows to fine-tune on

_TASK = re.compile(r"/natural_instructions/subtask\d+_(\w+)/task\.json$")
_PROBLEMS = "/elementary_math_qa/question_with_{}_hint/task.json"
_HINTS = ("language", "mathematical")


def wanted(name: str) -> bool:
    """Whether a member of the archive is a named task or a file of problems."""
    return bool(_TASK.search(name)) or any(name.endswith(_PROBLEMS.format(hint)) for hint in _HINTS)


def task_rows(name: str, task: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The rows of a task: definition and input, and the first of the answers."""
    for number, own in enumerate(task["examples"]):
        answers = own["target"] if isinstance(own["target"], list) else [own["target"]]
        if answers and str(answers[0]).strip():
            yield {
                "id": f"{name} {number}",
                "task": name,
                "prompt": f"{own['input'].strip()}\n",
                "completion": str(answers[0]).strip(),
            }


def problem_rows(hints: dict[str, dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Word problems: question, the solution in words and as a formula, and the answer."""
    words, formulas = (hints[name]["examples"] for name in _HINTS)
    for number, (one, other) in enumerate(zip(words, formulas, strict=True)):
        question, _, solution = one["input"].partition("\n")
        again, _, formula = other["input"].partition("\n")
        if question != again:
            raise ValueError(f"problem {number} differs in the two files of the archive")
        [answer] = [text for text, right in one["target_scores"].items() if right]
        yield {
            "id": f"problem {number}",
            "question": question.strip(),
            "solution": solution.strip(" ,"),
            "formula": formula.strip(),
            "answer": answer.strip(),
        }


def asked(problem: dict[str, str]) -> dict[str, str]:
    """A word problem as it is asked, with its solution and answer."""
    return {
        "prompt": f"{problem['question']}\n",
        "completion": f"{problem['solution']} answer: {problem['answer']}",
    }


def told(row: dict[str, str]) -> dict[str, str]:
    """A task's row with the task in words before the prompt, for the instruction, which is long."""
    return row | {"prompt": f"{row['task'].replace('_', ' ')}: {row['prompt']}"}


def fitting(path: pathlib.Path) -> dict[str, list[dict[str, str]]]:
    """The rows of `tasks.jsonl` that small models can read, told, by their task."""
    by_task: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in map(told, read_lines(path)):
        if len(row["prompt"]) + len(row["completion"]) <= LONGEST:
            by_task[row["task"]].append(row)
    return by_task


def is_short(rows: Sequence[dict[str, str]]) -> bool:
    """Whether a task's answers are short."""
    return statistics.median(len(row["completion"]) for row in rows) <= SHORT


def read_lines(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_lines(path: pathlib.Path, rows: Iterable[dict[str, str]]) -> None:
    """Write rows as JSON lines, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as place, place.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write(out: pathlib.Path) -> None:
    """All files; what is there is left."""
    if not (out / "problems.jsonl").exists():
        hints, tasks = {}, []
        for name, content in bigbench(out.parent / f"{out.name}.packages", wanted):
            if own := _TASK.search(name):
                tasks += task_rows(own[1], content)
            else:
                hints[next(h for h in _HINTS if name.endswith(_PROBLEMS.format(h)))] = content
        write_lines(out / "tasks.jsonl", tasks)
        write_lines(out / "problems.jsonl", problem_rows(hints))
    if not (out / "solutions.jsonl").exists():
        _write_small(out)


def _write_small(out: pathlib.Path) -> None:
    """The files that small models learn from, drawn at random, always the same."""
    rng = np.random.default_rng(0)
    by_task = fitting(out / "tasks.jsonl")
    rows = [row for own in by_task.values() for row in own]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    long = {name for name, own in by_task.items() if not is_short(own)}
    base = list(itertools.islice((row for row in rows if row["task"] in long), _BASE))
    read = {row["id"] for row in base}
    texts = ({"id": row["id"], "text": row["prompt"] + row["completion"]} for row in base)
    write_lines(out / "base.jsonl", texts)
    rest = (row for row in rows if row["id"] not in read)
    write_lines(out / "rows.jsonl", itertools.islice(rest, _ROWS))
    problems = ({"id": own["id"], **asked(own)} for own in read_lines(out / "problems.jsonl"))
    short = (row for row in problems if len(row["prompt"]) + len(row["completion"]) <= LONGEST)
    write_lines(out / "solutions.jsonl", short)


def main(words: list[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="instructions", description=__doc__)
    parser.add_argument("--out", default="data/instructions", help="Folder of the files.")
    write(pathlib.Path(parser.parse_args(words).out))


if __name__ == "__main__":
    main(sys.argv[1:])
