"""What each choice of STRIDE is worth: one change at a time against the bank of a leaderboard.

    python -m benchmarks.ablation --config=configs/mnist5k.py --workdir=runs/leaderboard/mnist5k

Writes `ablation.json` and prints a Markdown table for docs/lab.md. The first group is the grid that
the automatic choice of taps and the default damping are held against: direct scores of every tap
alone and of all together, times damping.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks.meter import index_bytes
from benchmarks.methods import fit_direct, fit_stride, score_direct, score_stride
from stride_jax import evaluation
from stride_jax.baselines import logra
from stride_jax.data import Examples
from stride_jax.design import membership
from stride_jax.index import StrideSettings
from stride_jax.recovery import Recovery, solve
from stride_jax.recovery.selection import SelectionSettings, recover
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import run_settings
from stride_jax.runtime.files import plain, write_json
from stride_jax.runtime.progress import bars
from stride_jax.stride import lasso_state

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The leaderboard's folder.", required=True)

Trial = tuple[str, str, StrideSettings, bool]
"""Group, what is changed, settings, and whether scores are direct."""


def change(settings: StrideSettings, path: str, value: Any) -> StrideSettings:
    """Settings with one field changed, such as `closed_form.damping`.

    >>> change(StrideSettings(), "design.degree", 3).design.degree
    3
    """
    section, _, name = path.rpartition(".")
    if not section:
        return dataclasses.replace(settings, **{name: value})
    inner = dataclasses.replace(getattr(settings, section), **{name: value})
    return dataclasses.replace(settings, **{section: inner})


def direct_trials(base: StrideSettings, taps: Sequence[str]) -> Iterator[Trial]:
    """Taps, damping, doubt, rank, curvature and sites, read without the sketch."""
    default = str(base.closed_form.damping)
    yield "default, direct", f"taps chosen, damping {default}", base, True
    for chosen in (*((tap,) for tap in taps), tuple(taps)):
        named = change(base, "taps", chosen)
        for damping in (0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
            label = f"{' + '.join(chosen)}, damping {damping}"
            yield "taps x damping", label, change(named, "closed_form.damping", damping), True
    for doubt in (0.0, 0.001, 0.02):
        yield "doubt", str(doubt), change(base, "closed_form.doubt", doubt), True
    for rank in (16, 64, 256):
        yield "rank", f"R = {rank}", change(base, "basis.rank", rank), True
    yield "rank", "R = 256, random", change(base, "basis.kind", "random"), True
    for form in ("exact", "eigen", "kronecker"):
        yield "curvature", form, change(base, "closed_form.fisher", form), True
    for tap in [name for name in taps if name != "input"]:
        yield "sites", f"{tap} alone", change(base, "sites", (tap,)), True
        yield "sites", f"logit + {tap}", change(base, "sites", ("logit", tap)), True


def sketch_trials(base: StrideSettings) -> Iterator[Trial]:
    """K, d, lambda and the measuring scale; then joint training, with each loss left out."""
    yield "default", "", base, False
    for k in (100, 300, 1000):
        for d in (3, 10, 30):
            for fraction in (0.01, 0.05, 0.2):
                own = change(change(base, "design.num_subsets", k), "design.degree", d)
                own = change(own, "lasso.lambda_fraction", fraction)
                yield "K x d x lambda", f"K = {k}, d = {d}, lambda {fraction}", own, False
    for prior in (0.0, 0.5):
        yield "prior", str(prior), change(base, "prior", prior), False
        small = change(base, "design.num_subsets", 3 * base.design.num_subsets // 10)
        yield "prior", f"{prior}, K = 3/10", change(small, "prior", prior), False
    for scale in (0.1, 1.0):
        yield "measuring scale", f"{scale}", change(base, "measure.scale", scale), False
    joint = change(change(base, "fit", "joint"), "basis.rank", min(64, base.basis.rank))
    joint = change(change(joint, "lasso.lambda_fraction", 0.05), "prior", 0.0)
    three = change(joint, "joint.linearity", 1.0)
    yield "joint", "three losses", three, False
    yield "joint", "without linearity", joint, False
    yield "joint", "without stability", change(three, "joint.stability", 0.0), False
    yield "joint", "without fidelity", change(three, "joint.fidelity", 0.0), False


def figure(run: Run, trial: Trial) -> dict[str, Any]:
    """LDS of one trial on the whole bank: nothing here is tuned on it."""
    group, label, settings, is_direct = trial
    fit, score = (fit_direct, score_direct) if is_direct else (fit_stride, score_stride)
    try:
        membership(settings.design, run.train.ids)
    except ValueError as refused:  # too many subsets for so few examples
        return {"group": group, "change": label, "refused": str(refused)}
    state = fit(run.base_model, run.train, settings)
    result = evaluation.lds(score(state, run.base_model, run.train, run.query, settings), run.bank)
    taps = state.settings.taps
    return {"group": group, "change": label, "lds": result.lds, "ci95": result.ci95, "taps": taps}


def lambda_rows(run: Run) -> list[dict[str, Any]]:
    """Lambdas fixed for all queries, and chosen per query without the bank."""
    settings = run.settings.stride
    state = lasso_state(settings, run.train.ids, run.operators[1])
    rows = []

    def add(label: str, found: Recovery) -> None:
        result = evaluation.lds(found.scores_QxN, run.bank)
        rows.append({"group": "lambda", "change": label, "lds": result.lds, "ci95": result.ci95})

    for fraction in (0.005, 0.01, *SelectionSettings().fractions[::-1]):
        how = dataclasses.replace(settings.lasso, lambda_fraction=fraction)
        add(f"{fraction} of lambda_max", solve(state, run.measurements, how))
    for rule in ("best", "one_se"):
        chosen = SelectionSettings(rule=rule)
        add(f"chosen: {rule}", recover(state, run.measurements, settings.lasso, chosen)[0])
    return rows


def index_sizes(run: Run) -> list[dict[str, int]]:
    """Bytes of STRIDE's index and of LoGRA's store as the training set grows."""
    train, rows = run.train, []
    for n in sorted({len(train) // 9, len(train) // 3, len(train)}):
        part = Examples(train.inputs[:n], train.labels[:n], train.ids[:n])
        design = run.settings.stride.design
        # Twenty members a subset at least, so that none is empty; the bytes don't depend on d.
        degree = max(design.degree, -(-20 * design.num_subsets // n))
        settings = change(run.settings.stride, "design.degree", degree)
        ours = fit_stride(run.base_model, part, settings)
        store = logra.fit(run.base_model, part, logra.LograSettings(rank=32))
        rows.append({"num_train": n, "stride": ours.nbytes, "logra": index_bytes(store)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| | change | LDS | 95 % |", "|---|---|---|---|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['group']} | {row['change']} | refused | |")
            continue
        low, high = row["ci95"]
        lines.append(
            f"| {row['group']} | {row['change']} | {row['lds']:.3f} | {low:.3f} – {high:.3f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run every trial; write and print the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    values = _CONFIG.value.to_dict()
    values["bank"]["num_subsets"] = values["leaderboard"]["num_subsets"]
    run = Run(run_settings(values), _WORKDIR.value, bars)
    taps = sorted(jax.eval_shape(run.tapped.forward, run.model[0], run.train.inputs[:1])[1])
    base = run.settings.stride
    trials = [*direct_trials(base, taps), *sketch_trials(base)]
    rows = [figure(run, trial) for trial in bars(trials, desc="ablation")]
    rows += lambda_rows(run)
    sizes = index_sizes(run)
    write_json(
        pathlib.Path(_WORKDIR.value) / "ablation.json", plain({"rows": rows, "index_bytes": sizes})
    )
    print(table(rows))
    for row in sizes:
        print("N = {num_train}: index {stride} bytes, LoGRA's store {logra}".format(**row))


if __name__ == "__main__":
    app.run(main)
