"""The unit of scores: what trainings tell of it, and what is said and done where they don't."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from stride_jax import evaluation
from stride_jax.attribution import Attribution, ensemble
from stride_jax.design import Design
from stride_jax.evaluation import Bank, BankSettings, Origin, Unit, UnitSettings, draw_subsets
from stride_jax.index import Index
from stride_jax.models import MLP, TrainSettings
from stride_jax.runtime.files import UnreadableFileError, read_arrays, write_arrays
from stride_jax.settings import IndexSettings
from stride_jax.stride import fit
from stride_jax.unit import words

KNOWN, UNKNOWN = Unit(2.0, (1.5, 2.5)), Unit(2.0, (0.5, 3.5))


def relative(num_queries=5, num_train=43, seed=0):
    """Sparse scores."""
    rng = np.random.default_rng(seed)
    shape = (num_queries, num_train)
    scores = rng.normal(size=shape) * (rng.random(shape) < 0.5)
    ids = [[f"{letter}{i}" for i in range(n)] for letter, n in zip("qt", shape, strict=True)]
    return Attribution(*ids, scipy.sparse.csr_array(scores.astype(np.float32)))


def bank_of(attribution, slope, settings, noise=0.0):
    """Models for which leaving examples out costs `slope` times their scores, besides what every
    query pays for a smaller training set."""
    num_queries, num_train = attribution.scores.shape
    members = draw_subsets(num_train, settings)
    rng = np.random.default_rng(1)
    paid = np.stack([
        attribution.scores_QxN.sum(axis=1) - attribution.scores_QxN[:, rows].sum(axis=1)
        for rows in members
    ])  # fmt: skip
    losses = rng.normal(size=num_queries) + 100 + slope * paid
    losses = losses[:, None] + noise * rng.normal(size=(len(members), 2, num_queries))
    origin = Origin("", TrainSettings(), num_train, "", "")
    return Bank(members, losses, losses, settings, origin, 0.0)


def test_the_slope_is_that_of_least_squares_and_its_interval_students():
    real, predicted = np.array([[2.0, 1.0], [0.0, 2.0]]), np.array([[1.0, 2.0], [0.0, 1.0]])
    assert evaluation.unit_of_effects(real, predicted).slope == pytest.approx(6 / 6)
    exact = evaluation.unit_of_effects(3 * predicted, predicted)
    assert exact.ci95 == pytest.approx((3, 3))
    assert exact.is_known
    nothing = evaluation.unit_of_effects(real, np.zeros((2, 2)))
    assert (nothing.slope, nothing.is_known, nothing.factor) == (0, False, 1)
    rng = np.random.default_rng(0)
    trials, hits = 400, 0
    for _ in range(trials):
        predicted = rng.normal(size=(1, 6))
        found = evaluation.unit_of_effects(2 * predicted + rng.normal(size=(1, 6)), predicted)
        hits += found.ci95[0] <= 2 <= found.ci95[1]
    assert 0.9 < hits / trials < 0.99, "six groups: a percentile bootstrap covers .8"
    # Of a mean, the jackknife is the textbook's interval.
    ones, values = np.ones((1, 9)), rng.normal(size=(1, 9))
    low, high = scipy.stats.t.interval(
        0.95, 8, loc=values.mean(), scale=scipy.stats.sem(values[0])
    )  # fmt: skip
    assert evaluation.unit_of_effects(values, ones).ci95 == pytest.approx((low, high))
    with pytest.raises(ValueError, match=r"at least two groups"):
        evaluation.unit_of_effects(real[:, :1], predicted[:, :1])


def test_left_out_groups_tell_the_unit_whatever_a_smaller_set_costs():
    attribution, settings = relative(), UnitSettings(groups=6, num_seeds=2).bank
    found = evaluation.unit_of_bank(attribution, bank_of(attribution, 3.0, settings))
    assert found.slope == pytest.approx(3, rel=1e-5)
    assert found.is_known
    # Asked for margins, models answer with theirs: a margin falls by as much.
    bank = bank_of(attribution, 3.0, settings)
    margins = dataclasses.replace(bank, losses_MxExQ=0 * bank.losses_MxExQ,
                                  margins_MxExQ=-bank.losses_MxExQ)  # fmt: skip
    assert evaluation.unit_of_bank(attribution, margins, "margin").slope == found.slope
    noisy = evaluation.unit_of_bank(attribution, bank_of(attribution, 0.0, settings, noise=50.0))
    assert not noisy.is_known
    for other in (BankSettings(num_subsets=6), BankSettings("groups", 2)):
        said = f"kind '{other.kind}' with num_subsets={other.num_subsets} does not leave out three"
        with pytest.raises(ValueError, match=said):
            evaluation.unit_of_bank(attribution, bank_of(attribution, 1.0, other))
    with pytest.raises(ValueError, match=r"scores of 5 queries and 43 .* models of 5 and 42"):
        evaluation.unit_of_bank(attribution, bank_of(relative(5, 42), 1.0, settings))
    with pytest.raises(ValueError, match="unit 2 already"):
        evaluation.unit_of_bank(
            attribution.in_unit(KNOWN), bank_of(attribution, 1.0, settings)
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"groups=2.*at least three groups"):
        UnitSettings(groups=2)


def test_trainings_measure_it_and_resume(digits, tmp_path):
    train, query = digits["train"].take(slice(60)), digits["query"].take(slice(20))
    recipe = TrainSettings(epochs=2, batch_size=16)
    setup = evaluation.Retraining(MLP(10, (8,)), train, query, recipe)
    scores = np.random.default_rng(0).normal(size=(20, 60)).astype(np.float32)
    attribution = Attribution(query.ids, train.ids, scores)
    settings = UnitSettings(groups=5, models_at_once=2)
    found = evaluation.measure_unit(attribution, setup, settings, folder=tmp_path)
    bank = evaluation.read_bank(setup, settings.bank, tmp_path)
    assert found == evaluation.unit_of_bank(attribution, bank)
    assert not found.is_known, "these scores are noise"
    last = max(tmp_path.glob("*/models-*"))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/models-*")}
    last.unlink()
    assert evaluation.measure_unit(attribution, setup, settings, folder=tmp_path) == found
    again = {path for path, when in written.items() if path.stat().st_mtime_ns != when}
    assert again == {last}
    with pytest.raises(ValueError, match="models of 20 and 60"):
        evaluation.measure_unit(relative(), setup, settings, folder=tmp_path)


def test_scores_are_multiplied_and_called_nats_only_where_the_unit_is_known(tmp_path):
    scores = relative()
    for unit, factor, said in (
        (KNOWN, 2, "nats, unit 2 [1.5, 2.5]"),
        (UNKNOWN, 1, "relative: unit not known, between 0.5 and 3.5"),
        (None, 1, "relative: unit not measured"),
    ):
        own = scores if unit is None else scores.in_unit(unit)
        np.testing.assert_allclose(own.scores_QxN, factor * scores.scores_QxN)
        assert words(own.unit) == said
        assert repr(own).endswith(f"; {said})")
        own.save(tmp_path / "a.parquet")
        for same in (own.by_key(), Attribution.load(tmp_path / "a.parquet")):
            assert same.unit == unit
            assert same.top(2).attrs["scores"] == said
    with pytest.raises(ValueError, match="have the unit 2 already"):
        scores.in_unit(KNOWN).in_unit(KNOWN)
    for slope, ci95 in ((np.nan, (0.0, 1.0)), (2.0, (3.0, 4.0))):
        with pytest.raises(ValueError, match="give a finite slope and an interval around it"):
            Unit(slope, ci95)
    other = scores.in_unit(Unit(4.0, (3.5, 4.5)))
    assert ensemble([scores.in_unit(KNOWN), other]).unit == Unit(3.0, (2.5, 3.5))
    assert ensemble([scores.in_unit(UNKNOWN), scores]).unit is None
    with pytest.raises(ValueError, match="1 of 2 attributions are in nats"):
        ensemble([scores.in_unit(KNOWN), scores])


def test_an_index_keeps_its_unit_and_reads_files_from_before(trained, tmp_path):
    few = trained.train.take(slice(80))
    settings = IndexSettings(design=Design(20, 3), taps=("input",))
    index = fit(trained.tapped, trained.params, few.inputs, few.labels, settings, ids=few.ids)
    path = tmp_path / "index.npz"
    for unit, factor in ((KNOWN, 2), (UNKNOWN, 1), (None, 1)):
        dataclasses.replace(index, unit=unit).save(path)
        back = Index.load(path)
        assert (back.unit, back.factor) == (unit, factor)
    arrays = read_arrays(path)
    write_arrays(path, **arrays, unit=1.0)
    assert Index.load(path).unit is None
    write_arrays(path, **arrays, unit=2.0)
    with pytest.raises(UnreadableFileError, match=r"its unit 2.0 has no interval: measure it"):
        Index.load(path)
