"""The unit of scores from a few real trainings, where theory can't give it.

Groups of examples are left out, models trained without them, and the differences between the
groups' real effects compared with those that scores predict. All models are trained on equally many
examples, so no model of the whole set is needed, and the cost of having fewer examples, which is no
example's own, drops out.

Letter of its own: M groups.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

from stride_jax.attribution import Attribution
from stride_jax.evaluation.bank import Bank, BankSettings
from stride_jax.evaluation.bank_files import Folder, fill_bank, read_bank
from stride_jax.evaluation.retrain import Retraining
from stride_jax.runtime.progress import Progress, silent
from stride_jax.unit import Unit


@dataclasses.dataclass(frozen=True)
class UnitSettings:
    """The trainings that measure a unit, `groups * num_seeds` of them.

    Eight tell the factor for a language model, whose queries count many tokens; where the interval
    stays wide, more seeds and groups narrow it.

    Attributes:
      groups: M, disjoint groups of `N / M` examples.
      num_seeds: models per group.
      models_at_once: models trained together under `vmap`, and written together.
      seed: random seed of groups, initial parameters and orders.
    """

    groups: int = 8
    num_seeds: int = 1
    models_at_once: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.groups < 3 or min(self.num_seeds, self.models_at_once) < 1:
            raise ValueError(
                f"groups={self.groups}, num_seeds={self.num_seeds}, models_at_once="
                f"{self.models_at_once}: give at least three groups and one of the others"
            )

    @property
    def bank(self) -> BankSettings:
        """The bank of models that are trained."""
        return BankSettings(
            "groups", self.groups, num_seeds=self.num_seeds, models_at_once=self.models_at_once,
            seed=self.seed,
        )  # fmt: skip


def measure_unit(
    attribution: Attribution,
    setup: Retraining,
    settings: UnitSettings = UnitSettings(),
    *,
    folder: Folder,
    target: str = "loss",
    progress: Progress = silent,
    clock: Callable[[], float] | None = None,
) -> Unit:
    """The unit of an index' scores: train models without groups of examples, and compare.

        unit = measure_unit(attribution, setup, folder="bank")
        index = dataclasses.replace(index, unit=unit)    # of answers to come
        attribution = attribution.in_unit(unit)          # of these

    A unit is of one index read in one way: soft thresholding, for one, changes it.

    Args:
      attribution: scores of the setup's queries, without a unit.
      setup: model, data and recipe.
      settings: number of groups and seeds.
      folder: of the models' outputs; a measurement that was killed resumes there.
      target: what the queries were asked, `loss` or `margin`.
      progress, clock: as in `fill_bank`.

    Raises:
      ValueError: scores of other examples, or in a unit already; a model diverged.
    """
    _check(attribution, len(setup.train), len(setup.query))
    fill_bank(setup, settings.bank, folder, progress=progress, clock=clock)
    return unit_of_bank(attribution, read_bank(setup, settings.bank, folder), target)


def unit_of_bank(attribution: Attribution, bank: Bank, target: str = "loss") -> Unit:
    """The unit of scores from models that exist.

    Args:
      attribution: scores of the bank's queries, without a unit.
      bank: of the kind `groups`, three or more.
      target: what the queries were asked, `loss` or `margin`.

    Raises:
      ValueError: another kind of bank, or fewer groups; scores of other examples, or in a unit
        already.
    """
    if bank.settings.kind != "groups" or len(bank.members_MxS) < 3:
        # About their mean, two groups mirror each other: nothing is left to err.
        raise ValueError(
            f"a bank of kind {bank.settings.kind!r} with num_subsets={len(bank.members_MxS)} does "
            "not leave out three groups or more: make one with UnitSettings().bank"
        )
    n = bank.origin.num_train
    _check(attribution, n, bank.losses_MxExQ.shape[2])
    out_MxN = np.ones((len(bank.members_MxS), n), np.float32)
    np.put_along_axis(out_MxN, bank.members_MxS, 0.0, axis=1)
    predicted_QxM = np.asarray(attribution.scores @ out_MxN.T)
    real_QxM = -bank.target(target)
    return unit_of_effects(*(v - v.mean(axis=1, keepdims=True) for v in (real_QxM, predicted_QxM)))


def _check(attribution: Attribution, num_train: int, num_queries: int) -> None:
    shape = (len(attribution.query_ids), len(attribution.train_ids))
    if shape != (num_queries, num_train):
        raise ValueError(
            f"scores of {shape[0]} queries and {shape[1]} examples, models of {num_queries} and "
            f"{num_train}: attribute the queries and examples that the models are of"
        )
    if attribution.unit is not None:
        raise ValueError(
            f"these scores have the unit {attribution.unit.slope:.3g} already: measure it on those "
            "of an index without, dataclasses.replace(index, unit=None)"
        )


def unit_of_effects(real_QxM: np.ndarray, predicted_QxM: np.ndarray) -> Unit:
    """Slope through the origin of real on predicted effects of leaving groups out.

    The interval is Student's, with M − 1 degrees of freedom, about the jackknife's standard error
    over groups: a bootstrap of so few covers too seldom.

    Args:
      real_QxM: by how much each query's loss rises without each group, nats.
      predicted_QxM: sums of the groups' scores.

    Raises:
      ValueError: other shapes, or fewer than two groups.

    >>> unit_of_effects(np.array([[2.0, 4.0, 6.0]]), np.array([[1.0, 2.0, 3.0]]))
    Unit(slope=2.0, ci95=(2.0, 2.0))
    """
    count = real_QxM.shape[1]
    if real_QxM.shape != predicted_QxM.shape or count < 2:
        raise ValueError(
            f"effects of shape {real_QxM.shape} and {predicted_QxM.shape}: give both for the same "
            "queries and at least two groups"
        )
    real, predicted = (v.astype(np.float64) for v in (real_QxM, predicted_QxM))
    products_M, squares_M = (real * predicted).sum(axis=0), (predicted**2).sum(axis=0)
    slope = products_M.sum() / max(squares_M.sum(), 1e-300)
    without_M = (products_M.sum() - products_M) / np.maximum(squares_M.sum() - squares_M, 1e-300)
    error = np.sqrt((count - 1) * np.mean((without_M - without_M.mean()) ** 2))
    reach = float(stdtrit(count - 1, 0.975) * error)
    return Unit(float(slope), (float(slope) - reach, float(slope) + reach))
