"""What each choice of STRIDE is worth: one change at a time against the bank of a leaderboard.

    python -m benchmarks.ablation --config=configs/mnist5k.py --workdir=runs/leaderboard/mnist5k

Writes `ablation.json` and prints a Markdown table for docs/lab.md. The first group is the grid that
the automatic choice of taps and the default damping are held against: direct scores of every tap
alone and of all together, times damping.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks.leaderboard import LeaderboardSettings, on_bank_of
from benchmarks.meter import index_bytes
from benchmarks.methods import (
    Stride,
    changed,
    fit_direct,
    fit_stride,
    score_direct,
    score_stride,
)
from benchmarks.program import Asked, Program
from stride_jax import evaluation
from stride_jax.baselines import logra
from stride_jax.design import membership
from stride_jax.estimate import lasso_state
from stride_jax.recovery import Recovery, solve
from stride_jax.recovery.selection import SelectionSettings, recover
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import plain, write_json
from stride_jax.runtime.progress import bars

Trial = tuple[str, str, Stride, bool]
"""Group, what is changed, settings, and whether scores are direct."""


def direct_trials(base: Stride, taps: Sequence[str]) -> Iterator[Trial]:
    """Taps, damping, doubt, rank, curvature and sites, read without the sketch."""
    default = base.index.closed_form.damping or "of the features"
    yield "default, direct", f"taps chosen, damping {default}", base, True
    for chosen in (*((tap,) for tap in taps), tuple(taps)):
        named = changed(base, {"index.taps": chosen})
        for damping in (0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
            label = f"{' + '.join(chosen)}, damping {damping}"
            damped = changed(named, {"index.closed_form.damping": damping})
            yield "taps x damping", label, damped, True
    for doubt in (0.0, 0.001, 0.02):
        yield "doubt", str(doubt), changed(base, {"index.closed_form.doubt": doubt}), True
    for rank in (16, 64, 256):
        yield "rank", f"R = {rank}", changed(base, {"index.basis.rank": rank}), True
    yield "rank", "R = 256, random", changed(base, {"index.basis.kind": "random"}), True
    for form in ("exact", "eigen", "kronecker"):
        yield "curvature", form, changed(base, {"index.closed_form.fisher": form}), True
    for tap in [name for name in taps if name != "input"]:
        yield "sites", f"{tap} alone", changed(base, {"index.sites": (tap,)}), True
        yield "sites", f"logit + {tap}", changed(base, {"index.sites": ("logit", tap)}), True


def sketch_trials(base: Stride) -> Iterator[Trial]:
    """K, d, lambda and the measuring scale; then joint training, with each loss left out."""
    yield "default", "", base, False
    for k in (100, 300, 1000):
        for d in (3, 10, 30):
            for fraction in (0.01, 0.05, 0.2):
                own = changed(
                    base,
                    {
                        "index.design.num_subsets": k,
                        "index.design.degree": d,
                        "read.lasso.lambda_fraction": fraction,
                    },
                )
                yield "K x d x lambda", f"K = {k}, d = {d}, lambda {fraction}", own, False
    few = changed(base, {"index.design.num_subsets": 3 * base.index.design.num_subsets // 10})
    for prior in (0.0, 0.5):
        yield "prior", str(prior), changed(base, {"read.prior": prior}), False
        yield "prior", f"{prior}, K = 3/10", changed(few, {"read.prior": prior}), False
    for scale in (0.1, 1.0):
        yield "measuring scale", f"{scale}", changed(base, {"read.measure.scale": scale}), False
    joint = changed(
        base,
        {
            "index.fit": "joint",
            "index.basis.rank": min(64, base.index.basis.rank),
            "read.lasso.lambda_fraction": 0.05,
            "read.prior": 0.0,
        },
    )
    three = changed(joint, {"index.joint.linearity": 1.0})
    yield "joint", "three losses", three, False
    yield "joint", "without linearity", joint, False
    yield "joint", "without stability", changed(three, {"index.joint.stability": 0.0}), False
    yield "joint", "without fidelity", changed(three, {"index.joint.fidelity": 0.0}), False


def figure(run: Run, trial: Trial) -> dict[str, Any]:
    """LDS of one trial on the whole bank: nothing here is tuned on it."""
    group, label, settings, is_direct = trial
    fit, score = (fit_direct, score_direct) if is_direct else (fit_stride, score_stride)
    try:
        membership(settings.index.design, run.train.ids)
    except ValueError as refused:  # too many subsets for so few examples
        return {"group": group, "change": label, "refused": str(refused)}
    state = fit(run.model, run.train, settings)
    result = evaluation.lds(score(state, run.model, run.train, run.query, settings), run.bank)
    taps = state.settings.taps
    return {"group": group, "change": label, "lds": result.lds, "ci95": result.ci95, "taps": taps}


def lambda_rows(run: Run) -> list[dict[str, Any]]:
    """Lambdas fixed for all queries, and chosen per query without the bank."""
    read = run.settings.read
    state = lasso_state(run.index, read)
    rows = []

    def add(label: str, recovery: Recovery) -> None:
        result = evaluation.lds(recovery.scores_QxN, run.bank)
        rows.append({"group": "lambda", "change": label, "lds": result.lds, "ci95": result.ci95})

    for fraction in (0.005, 0.01, *SelectionSettings().fractions[::-1]):
        lasso = dataclasses.replace(read.lasso, lambda_fraction=fraction)
        add(f"{fraction} of lambda_max", solve(state, run.measurements, lasso))
    for rule in ("best", "one_se"):
        chosen = SelectionSettings(rule=rule)
        add(f"chosen: {rule}", recover(state, run.measurements, read.lasso, chosen)[0])
    return rows


def index_sizes(run: Run) -> list[dict[str, int]]:
    """Bytes of STRIDE's index and of LoGRA's store as the training set grows."""
    train, base, rows = run.train, Stride.of(run.settings), []
    for n in sorted({len(train) // 9, len(train) // 3, len(train)}):
        part, design = train.take(slice(n)), base.index.design
        # Twenty members a subset at least, so that none is empty; the bytes don't depend on d.
        degree = max(design.degree, -(-20 * design.num_subsets // n))
        settings = changed(base, {"index.design.degree": degree})
        ours = fit_stride(run.model, part, settings)
        store = logra.fit(run.model, part, logra.LograSettings(rank=32))
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


def main(asked: Asked) -> None:
    """Run every trial; write and print the table."""
    board = asked.section("leaderboard", LeaderboardSettings)
    run = Run(on_bank_of(board, asked.settings), asked.workdir, bars)
    taps = sorted(jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1])
    base = Stride.of(run.settings)
    trials = [*direct_trials(base, taps), *sketch_trials(base)]
    rows = [figure(run, trial) for trial in bars(trials, desc="ablation")]
    rows += lambda_rows(run)
    sizes = index_sizes(run)
    write_json(asked.workdir / "ablation.json", plain({"rows": rows, "index_bytes": sizes}))
    print(table(rows))
    for row in sizes:
        print("N = {num_train}: index {stride} bytes, LoGRA's store {logra}".format(**row))


if __name__ == "__main__":
    Program("ablation", __doc__, {"leaderboard": LeaderboardSettings}).run(main)
