"""From a question to what is sent back: an answer for programs, or what the page draws."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from stride_jax.applications.answer import answered
from stride_jax.applications.inquiry import AskSettings, Inquiry, inquire, inquire_example
from stride_jax.applications.live.bodies import Question, example_of
from stride_jax.applications.report.content import ReportSettings, brief, questions
from stride_jax.applications.report.predictions import predictions
from stride_jax.attribution import found_by
from stride_jax.data.source import load_scaling
from stride_jax.reading import VERDICTS
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import plain, without_nan
from stride_jax.scores import as_dense, top_rows
from stride_jax.unit import words


def answering(run: Run) -> Callable[[Question], dict[str, Any]]:
    """What answers questions to a run, as JSON values.

    Args:
      run: with its model and operators.
    """
    own = run.settings
    scaling = None if own.is_text else load_scaling(own.data, run.workdir / "data")

    def answer(asked: Question) -> dict[str, Any]:
        if scaling is None:
            text = dict(asked.text)
            fields = {n: text.pop(n) for n in ("tokens", "question", "seed") if n in text}
            read = inquire(run, **text, settings=AskSettings(top=asked.top, **fields))
        else:
            read = inquire_example(run, example_of(run, asked, scaling))
        if asked.form == "page":
            return questions(run, [read], dataclasses.replace(ReportSettings(), top=asked.top))
        if scaling is None:
            return without_nan(plain(answered(run, read, asked.top)))
        return without_nan(_answer(run, read, asked.top))

    return answer


def _answer(run: Run, own: Inquiry, top: int) -> dict[str, Any]:
    """Proponents and opponents of an image or a row, with what they are worth."""
    found = own.reading
    scores_N, bits_N = as_dense(found.scores)[0], found.exact_QxN.toarray()[0]

    def entries(sign: int) -> list[dict[str, Any]]:
        rows = top_rows(sign * scores_N, top)
        labels = np.asarray(run.train.labels)[rows].tolist()
        return [
            {"id": str(run.train.ids[i]), "row": int(i), "label": label,
             "score": float(scores_N[i]), "found_by": found_by(bits_N[i], found.sources)}
            for i, label in zip(rows, labels, strict=True)
        ]  # fmt: skip

    worth = {n: float(v[0]) for n, v in found.diagnostics.items()}
    verdict = worth.pop("verdict")
    return {
        "id": str(own.ids[0]),
        **predictions(run, own.examples[0])[0],
        "proponents": entries(1),
        "opponents": entries(-1),
        "meaning": own.meaning,
        "scores": words(own.index.unit),
        "verdict": VERDICTS[int(verdict)],
        "diagnostics": {name: brief(value) for name, value in worth.items()},
    }
