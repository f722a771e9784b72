"""Do scores find the training sequences that are known to answer a query?

    python -m benchmarks.retrieval --config=configs/bible_verses.py --workdir=runs/retrieval/verses
    python -m benchmarks.retrieval --config=configs/bible_facts.py --workdir=runs/retrieval/facts

Verses: the model is trained on several translations and asked with another's verse; the same verse
in each translation is the answer. Facts: made-up sentences, each trained on once; the answer to its
ending is the sentence. Every method chooses its settings on the first queries, by mean reciprocal
rank, and is scored on the others.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks.contestants import contestants
from benchmarks.meter import Meter
from benchmarks.methods import Method, Stride
from benchmarks.program import Asked, Program
from stride_jax import attribution, evaluation
from stride_jax.data import relevant
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import fingerprint, plain, read_json, write_json
from stride_jax.runtime.progress import bars


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """What is asked, and of whom.

    Attributes:
      tuning_queries: the first queries choose settings, the others give the figures.
      top_k: recall is taken among so many.
      methods: names of contestants; all for none.
    """

    tuning_queries: int = 100
    top_k: int = 10
    methods: tuple[str, ...] = ()


def judge(method: Method, run: Run, settings: RetrievalSettings) -> dict[str, Any]:
    """A method's row of the table, at the settings that did best on the tuning queries."""
    truth_QxN = relevant(run.text.truth, run.query.ids, run.train.ids)
    tuning, scoring = slice(settings.tuning_queries), slice(settings.tuning_queries, None)
    best: tuple[float, Any, np.ndarray] = (-1.0, None, np.zeros(0))
    with Meter() as cost:
        for group in method.grid:
            state = method.fit(run.model, run.train, group[0])
            for choice in group:
                scores = method.score(state, run.model, run.train, run.query, choice)
                figure = evaluation.mean_reciprocal_rank(scores[tuning], truth_QxN[tuning]).mean
                best = max(best, (figure, choice, scores), key=lambda b: b[0])
    scored, answers = best[2][scoring], truth_QxN[scoring]
    recall = evaluation.recall_at_k(scored, answers, settings.top_k)
    reciprocal = evaluation.mean_reciprocal_rank(scored, answers)
    return {
        "method": method.name,
        "recall": recall.mean,
        "recall_ci95": recall.ci95,
        "mrr": reciprocal.mean,
        "mrr_ci95": reciprocal.ci95,
        "tried": sum(map(len, method.grid)),
        "settings": best[1],
        "seconds_of_all_settings": cost.seconds,
        "mrr_per_query": reciprocal.per_query_Q.tolist(),
    }


def stored(method: Method, run: Run, settings: RetrievalSettings) -> dict[str, Any]:
    """A method's row, from its file if it was judged before."""
    key = fingerprint(
        run.products.key("model"), method.name, [list(g) for g in method.grid], settings.top_k,
        settings.tuning_queries,
    )  # fmt: skip
    path = run.workdir / "methods" / f"{method.name}-{key}.json"
    if not path.exists():
        write_json(path, judge(method, run, settings))
    return read_json(path)


def hold(run: Run, settings: RetrievalSettings) -> dict[str, Any]:
    """Every method's row, ours first, and its difference from each."""
    names = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
    base = Stride.of(run.settings)
    methods = contestants(sorted(names), base, is_text=True, only=settings.methods)
    rows = [stored(method, run, settings) for method in bars(methods, desc="methods")]
    ours = np.array(rows[0]["mrr_per_query"])
    for row in rows:
        theirs = np.array(row.pop("mrr_per_query"))
        difference, interval = evaluation.bootstrap_difference(theirs, ours)
        row |= {"difference": difference, "difference_ci95": interval}
    return {
        "rows": rows,
        "top_k": settings.top_k,
        "queries": len(run.query) - settings.tuning_queries,
        "num_train": len(run.train),
        "settings": plain(run.settings),
        "device": str(jax.devices()[0].device_kind),
        "versions": attribution.versions(),
    }


def table(board: dict[str, Any]) -> str:
    """The board in markdown."""
    interval = lambda pair: f"{pair[0]:.3f} … {pair[1]:.3f}"  # noqa: E731
    lines = [
        f"{board['queries']} queries, N = {board['num_train']:,}.",
        "",
        f"| method | recall@{board['top_k']} | 95 % | MRR | 95 % | MRR minus stride's, 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in board["rows"]:
        lines.append(
            f"| {row['method']} | {row['recall']:.3f} | {interval(row['recall_ci95'])} | "
            f"{row['mrr']:.3f} | {interval(row['mrr_ci95'])} | {interval(row['difference_ci95'])} |"
        )
    return "\n".join(lines)


def main(asked: Asked) -> None:
    """Ask, write `retrieval.json` and print the table."""
    settings = asked.section("retrieval", RetrievalSettings)
    board = plain(hold(Run(asked.settings, asked.workdir, bars), settings))
    write_json(asked.workdir / "retrieval.json", board)
    print(table(board))
    print(f"written: {asked.workdir / 'retrieval.json'}")


if __name__ == "__main__":
    Program("retrieval", __doc__, {"retrieval": RetrievalSettings}).run(main)
