"""Five questions to the run of `configs/reference_books.py`, and what the run cost.

    python -m benchmarks.reference_answers --workdir=runs/reference_books
    python -m benchmarks.reference_answers --workdir=runs/reference_books --sources=bm25

Prints the answers, to be judged by eye, and writes tokens, parameters, seconds per stage, peak
memory and seconds of `ask` to `docs/results/pod.json`; with `--sources` it prints alone.
"""

import json
import math
import pathlib
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.corpus import POD
from benchmarks.house import Row, command, record
from stride_jax.applications.answer import Answer, ask
from stride_jax.applications.inquiry import AskSettings
from stride_jax.cli.doors import Parser
from stride_jax.run.opened import open_run
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import read_json
from stride_jax.settings import SOURCES

QUESTIONS = (
    ("In the beginning God created the heaven and the", " earth"),
    ("And Moses said unto the children of", " Israel"),
    ("hacker\nn.\n\n[originally, someone who makes furniture with an", " axe]"),
    ("LOVE, n.  A temporary insanity curable by", " marriage"),
    ("Return ``True`` if all characters in the", " string"),
)
"""Their sources are there: three Genesis 1, Exodus, Jargon File, Devil's Dictionary, Python
manual."""


def shown(answer: Answer, passages: int = 2) -> str:
    """An answer in Markdown."""
    lines = [f"**{answer.prompt}** *{answer.completion}* — {answer.verdict}", ""]
    for passage in answer.proponents[:passages]:
        text = " ".join("".join(passage.pieces).split())[:160]
        lines.append(f"- {passage.score:+.4f} {'; '.join(passage.references[:2])}: “{text}”")
    return "\n".join([*lines, ""])


def costs(run: Run, workdir: pathlib.Path) -> list[Row]:
    """What the run took, by its own summary and metrics."""
    summary = read_json(workdir / "summary.json")
    lines = (workdir / "metrics/metrics.jsonl").read_text().splitlines()
    peak = max(json.loads(line).get("memory_bytes", 0.0) for line in lines)
    shapes = jax.tree.leaves(jax.eval_shape(lambda: run.model.params))
    train = run.settings.train
    tokens = len(run.train) * run.train.token_shape[1]
    stages = summary["stages"]
    return [
        Row("reference books: tokens of the corpus", float(tokens), "higher", asked=2e7),
        Row("reference books: parameters", float(sum(math.prod(v.shape) for v in shapes)),
            "higher", asked=1e7),
        Row("reference books: tokens trained on",
            float(train.steps * train.batch_size * run.train.token_shape[1]), "higher"),
        Row("reference books: held-out loss, nats", summary["held_out_loss"], "lower"),
        Row("reference books: peak GiB", peak / 2**30, "lower"),
        *(Row(f"reference books: seconds of {name}", own, "lower") for name, own in stages.items()),
    ]  # fmt: skip


def answers(run: Run, settings: AskSettings) -> tuple[list[Answer], list[float]]:
    """Answers to the five questions, and the seconds each took."""
    made, seconds = [], []
    for prompt, completion in QUESTIONS:
        began = time.monotonic()
        made.append(ask(run, prompt, completion, settings=settings))
        seconds.append(time.monotonic() - began)
    return made, seconds


def main(words: Sequence[str]) -> int:
    """Ask, print, write the rows."""
    parser = Parser("reference_answers", __doc__)
    parser.flag("workdir", "Folder of the run.", default="runs/reference_books")
    parser.flag("sources", "Source that names candidates; the run's without it.", choices=SOURCES)
    given, _ = parser.read(words)
    workdir = pathlib.Path(given.workdir)
    run = open_run(workdir)
    sources = given.sources if given.sources is None else (given.sources,)
    made, seconds = answers(run, AskSettings(sources=sources))
    print("\n".join(shown(answer) for answer in made))
    said = [np.round(one, 2) for one in seconds]
    print(f"seconds: {said}")
    if sources is not None:
        return 0
    rows = costs(run, workdir)
    rows.append(Row("reference books: seconds of the first question", seconds[0], "lower"))
    rows.append(
        Row("reference books: seconds of a question, median of the next four",
            statistics.median(seconds[1:]), "lower", asked=3.0)
    )  # fmt: skip
    record(rows, path=POD)
    return 0


if __name__ == "__main__":
    command(main, "benchmarks.reference_answers")
