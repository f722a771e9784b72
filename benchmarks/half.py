"""What computing the model in bfloat16 costs: LDS of the same base model in both dtypes.

    python -m benchmarks.half --config=configs/bible_gpt.py --workdir=runs/half \\
        --config.bank.num_subsets=24 --config.bank.num_seeds=1

The base model is trained in float32, and so are the bank's models; fit, measurements, recovery and
exact scores are done twice. The bank is kept model by model: killed, the same command goes on. Rows
go to `docs/results/pod.json`.
"""

import dataclasses
import pathlib
import time

import numpy as np

from benchmarks.house import ROOT, Row, record
from benchmarks.methods import Stride, fit_stride, score_stride
from benchmarks.program import Asked, Program
from stride_jax import evaluation, models
from stride_jax.baselines.model import Model
from stride_jax.evaluation.statistics import bootstrap_mean, correlation_rows
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import read_arrays, write_arrays
from stride_jax.runtime.progress import bars

POD = ROOT / "docs/results/pod.json"
DTYPES = ("float32", "bfloat16")


def computed_in(run: Run, dtype: str) -> Model:
    """The run's base model, whose parameters stay, computed in a dtype.

    Raises:
      ValueError: the model is no GPT, and has no such setting.
    """
    own = run.settings.model
    if own.kind != "gpt":
        raise ValueError(f"model.kind={own.kind!r} computes in float32 alone: give a gpt's config")
    settings = dataclasses.replace(own, gpt=dataclasses.replace(own.gpt, dtype=dtype))
    return dataclasses.replace(run.model, module=models.make_model(settings, run.data[1]))


def scores_in(run: Run, dtype: str) -> np.ndarray:
    """STRIDE's scores `[Q, N]` with the model computed in a dtype; kept in the workdir."""
    path = run.workdir / "half" / f"{dtype}-{run.products.key('recovery')}.npz"
    if not path.exists():
        began, model, settings = time.monotonic(), computed_in(run, dtype), Stride.of(run.settings)
        index = fit_stride(model, run.train, settings)
        scores_QxN = score_stride(index, model, run.train, run.query, settings)
        write_arrays(path, scores=scores_QxN)
        print(f"{dtype}: {time.monotonic() - began:.0f} s", flush=True)
    return read_arrays(path)["scores"]


def main(asked: Asked) -> None:
    """Score in both dtypes, compare on one bank, record."""
    run = Run(asked.settings, asked.workdir, bars)
    scores = {dtype: scores_in(run, dtype) for dtype in DTYPES}
    same, interval = bootstrap_mean(
        correlation_rows(scores["float32"], scores["bfloat16"], "spearman")
    )
    figures = {dtype: evaluation.lds(own, run.bank) for dtype, own in scores.items()}
    lost, bounds = evaluation.lds_difference(*figures.values())
    name = pathlib.Path(asked.flags.config.partition(":")[0]).stem
    rows = [
        Row(f"{name}: LDS lost by computing in bfloat16", lost, "lower", bounds, asked=0.005),
        Row(f"{name}: scores in bfloat16 and in float32, rank correlation", same, "higher",
            interval),
        *(Row(f"{name}: LDS, computed in {dtype}", own.lds, "higher", own.ci95)
          for dtype, own in figures.items()),
    ]  # fmt: skip
    for row in rows:
        print(f"{row.name}: {row.value} {row.interval}")
    record(rows, path=pathlib.Path(asked.flags.out))


if __name__ == "__main__":
    program = Program("half", __doc__, config="configs/bible_gpt.py")
    program.flag("out", "Results file.", default=str(POD))
    program.run(main)
