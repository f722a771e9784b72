"""Rows about real effects: examples removed, groups left out, models trained again."""

import pathlib

import numpy as np

from benchmarks.house import Row
from benchmarks.pointing_figures import (
    PUBLISHED,
    Answers,
    Note,
    exactly,
    open_run,
    ratio_interval,
)
from stride_jax import evaluation
from stride_jax.evaluation import (
    BankSettings,
    CounterfactualSettings,
    Retraining,
    unit_of_effects,
)
from stride_jax.evaluation.lds import subset_sums
from stride_jax.evaluation.retrain import model_keys, retrain
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import fingerprint, read_arrays, write_arrays

SIZES = (50, 500)
_QUERIES = 20


def removal(workdir: pathlib.Path, note: Note) -> None:
    """Removal of MNIST-5k's strongest proponents: share of what direct scores' removal does."""
    run = open_run("mnist5k", workdir)
    rows = np.linspace(0, len(run.query) - 1, _QUERIES).astype(int)
    setup = Retraining(run.module, run.train, run.query.take(rows), run.settings.train)
    assert run.settings.bank is not None, "MNIST-5k has a bank"
    at_once = run.settings.bank.models_at_once
    settings = CounterfactualSettings(SIZES, num_seeds=1, models_at_once=at_once)
    reference = evaluation.counterfactual_reference(setup, settings, run.progress)

    def drops(scores_QxN: np.ndarray) -> np.ndarray:
        done = evaluation.counterfactual_removal(
            setup, scores_QxN[rows], settings, reference, run.progress
        )
        return done.drop_ZxQ

    direct_ZxQ = drops(Answers(run).direct())
    note([
        _drop(f"MNIST-5k removal of {name}, top {size}: drop", own)
        for name, own_ZxQ in (("direct's", direct_ZxQ), ("random", reference.random.drop_ZxQ))
        for size, own in zip(SIZES, own_ZxQ, strict=True)
    ])  # fmt: skip
    small = {"index.precision": "float16", "index.kept": 240_000}
    cases = {
        "K=1000, kept 240 kB, 1500 exact": (small, exactly(1500), (0.97, 0.90)),
        "K=1000, kept 240 kB, 300 exact": (small, exactly(300), (None, None)),
        "K=1000, kept 240 kB, no exact": (small, exactly(0), (None, None)),
        "hash, K=1000, nothing kept, no exact": (PUBLISHED, {}, (None, None)),
        "hash, K=1000, nothing kept, 1500 exact": (PUBLISHED, exactly(1500), (None, None)),
    }
    for name, (index, read, asked) in cases.items():
        own_ZxQ = drops(Answers(run, index).scores(read))
        note([
            Row(
                f"MNIST-5k removal, top {size}, {name}: share of direct's effect",
                float(own.mean() / true.mean()), "higher", ratio_interval(own, true), least,
            )
            for size, own, true, least in zip(SIZES, own_ZxQ, direct_ZxQ, asked, strict=True)
        ])  # fmt: skip


def _drop(name: str, values_Q: np.ndarray) -> Row:
    mean, interval = evaluation.bootstrap_mean(values_Q)
    return Row(name, mean, "higher", interval)


# ── the unit ─────────────────────────────────────────────────────────────────────────────────────

UNITS = {
    "mnist5k": (20, 4), "breast_cancer": (20, 4), "digits_resnet": (20, 4), "bible_gpt": (8, 1),
}  # fmt: skip
"""Groups that are left out, and models trained without each."""


def unit(workdir: pathlib.Path, note: Note, configs: tuple[str, ...] = ()) -> None:
    """Slope of real on predicted effects in nats, over all pairs of a query and a left-out group.

    The real effect is a query's loss under models trained without the group, less that under models
    of everything; the predicted one is the sum of the group's scores. Scores are of the calibrated
    model's loss, so a classifier's rows are of both losses: the models' own, where few queries far
    off weigh most, and that at the base model's temperature.

    Args:
      workdir: folder of the runs.
      note: writes rows down.
      configs: some of `UNITS`; all for none.
    """
    for config in configs or tuple(UNITS):
        groups, seeds = UNITS[config]
        run = open_run(config, workdir)
        at_once = 1 if run.settings.bank is None else run.settings.bank.models_at_once
        bank = BankSettings("groups", groups, num_seeds=seeds, models_at_once=at_once)
        run = open_run(config, workdir, bank=bank)
        whole = _whole(run, max(4, groups * seeds // 4))
        out_MxG = np.stack([
            np.setdiff1d(np.arange(len(run.train)), members) for members in run.bank.members_MxS
        ])  # fmt: skip
        predicted_QxM = subset_sums(Answers(run).scores(), out_MxG)
        name = f"unit, {config}: slope of real on predicted effect"
        real_QxM = _rise(run.bank.losses_MxExQ, whole["losses"])
        note(_slopes(name, real_QxM, predicted_QxM))
        if run.query.labels.ndim == 1:
            own = (calibrated(v, run.model.temperature)
                   for v in (run.bank.margins_MxExQ, whole["margins"]))  # fmt: skip
            note(_slopes(f"{name} at the temperature", _rise(*own), predicted_QxM))


def calibrated(margins: np.ndarray, temperature: float) -> np.ndarray:
    """Cross-entropy at a temperature, the classes besides the true one taken as one.

    >>> calibrated(np.array([0.0, -8.0]), 2.0).round(3).tolist()
    [0.693, 4.018]
    """
    return np.logaddexp(0.0, -np.asarray(margins, np.float64) / temperature)


def _rise(losses_MxExQ: np.ndarray, whole_JxQ: np.ndarray) -> np.ndarray:
    """How much the loss of each query rises without each group, `[Q, M]`."""
    return losses_MxExQ.mean(axis=1).T - whole_JxQ.mean(axis=0)[:, None]


def _slopes(name: str, real_QxM: np.ndarray, predicted_QxM: np.ndarray) -> list[Row]:
    """The slope, raw and where a quarter of the groups, two at least, gave the unit."""
    count = max(2, real_QxM.shape[1] // 4)
    measured = unit_of_effects(real_QxM[:, :count], predicted_QxM[:, :count])
    others = unit_of_effects(real_QxM[:, count:], measured.slope * predicted_QxM[:, count:])
    whole = unit_of_effects(real_QxM, predicted_QxM)
    rows = []
    for label, own in ((name, whole), (f"{name}, unit of {count} other groups", others)):
        rows += [
            Row(f"{label}, at least 0.33", own.slope, "higher", own.ci95, 0.33),
            Row(f"{label}, at most 3", own.slope, "lower", own.ci95, 3.0),
        ]
    centred = [v - v.mean(axis=1, keepdims=True) for v in (real_QxM, predicted_QxM)]
    alone = unit_of_effects(*centred)
    return [*rows, Row(f"{name}, means over groups taken off", alone.slope, "higher", alone.ci95)]


def _whole(run: Run, count: int) -> dict[str, np.ndarray]:
    """Losses and margins of the queries under models of the whole training set; stored."""
    bank = run.settings.bank
    assert bank is not None, "a unit is measured with a bank"
    setup = Retraining(run.module, run.train, run.query, run.settings.train)
    key = fingerprint(
        repr(run.module), run.settings.train, run.train.inputs, run.query.inputs, count
    )
    path = run.workdir / "whole" / f"{key}-models.npz"
    if not path.exists():
        everyone = np.tile(np.arange(len(run.train), dtype=np.int32), (count, 1))
        # Seeds of their own: no model of the bank shares its initial parameters with these.
        keys = model_keys(1, np.zeros(count, int), np.arange(count))
        parts = list(retrain(
            setup, everyone, keys, models_at_once=bank.models_at_once, progress=run.progress
        ))  # fmt: skip
        losses, margins = (np.concatenate(own) for own in zip(*parts, strict=True))
        write_arrays(path, losses=losses, margins=margins)
    return read_arrays(path)
