"""Instruction tasks and word problems that a package carries: what is tuned on, chosen and leaked.

    python -m benchmarks.instructions --out=data/instructions

Streams the source package of `bigbench` 1.0.0 (358 MB, fetched with pip; Apache-2.0), which is not
installed, and writes `tasks.jsonl`, the 61 named tasks of Natural Instructions, and
`problems.jsonl`, 7,688 word problems with worked solutions. Its authors ask that none of it is
trained on by chance: nothing of it belongs into the repository.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

from stride_jax.runtime.files import atomic_path

_TASK = re.compile(r"/natural_instructions/subtask\d+_(\w+)/task\.json$")
_PROBLEMS = "/elementary_math_qa/question_with_{}_hint/task.json"
_HINTS = ("language", "mathematical")


def archive(home: pathlib.Path) -> pathlib.Path:
    """The package's source, fetched if it is not there."""
    path = home / "bigbench-1.0.0.tar.gz"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        words = ("download", "--no-deps", "--no-binary", ":all:", "bigbench==1.0.0")
        subprocess.run([sys.executable, "-m", "pip", *words, "--dest", str(home)], check=True)
    return path


def members(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of the files that matter, in the archive's order."""
    with tarfile.open(path, "r|gz") as files:
        for member in files:
            wanted = _TASK.search(member.name) or any(
                member.name.endswith(_PROBLEMS.format(hint)) for hint in _HINTS
            )
            if wanted and (content := files.extractfile(member)) is not None:
                yield member.name, json.load(content)


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


def write(out: pathlib.Path) -> None:
    """Both files; what is there is left."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / "problems.jsonl").exists():
        return
    hints, tasks = {}, []
    for name, content in members(archive(out.parent / f"{out.name}.packages")):
        if own := _TASK.search(name):
            tasks += task_rows(own[1], content)
        else:
            hints[next(h for h in _HINTS if name.endswith(_PROBLEMS.format(h)))] = content
    for name, rows in (("tasks", tasks), ("problems", list(problem_rows(hints)))):
        with atomic_path(out / f"{name}.jsonl") as place, place.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        print(f"{out / name}.jsonl: {len(rows)} rows")


def main(words: list[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="instructions", description=__doc__)
    parser.add_argument("--out", default="data/instructions", help="Folder of the files.")
    write(pathlib.Path(parser.parse_args(words).out))


if __name__ == "__main__":
    main(sys.argv[1:])
