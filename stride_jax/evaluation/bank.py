"""A bank of retrained models: what it holds, and which banks may be mixed.

It is the ground truth of every figure; `bank_files` trains and stores it.

Letters of its own: M retrained subsets, E seeds per subset, G examples of a group.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stride_jax.models.train import TrainSettings
from stride_jax.objectives import named_objective
from stride_jax.runtime.files import added, plain


@dataclasses.dataclass(frozen=True)
class BankSettings:
    """The subsets that models are retrained on, and the number of seeds.

    Attributes:
      kind: `random`: subsets of a share alpha; `groups`: the training set is cut into `num_subsets`
        disjoint groups and each model trains on all groups but one.
      num_subsets: M.
      alpha: share of the training set in a random subset; unused by groups.
      num_seeds: E, models per subset, each with its own initial parameters and order.
      models_at_once: models trained together under `vmap`, and written together.
      seed: random seed of subsets, initial parameters and orders.
    """

    kind: str = "random"
    num_subsets: int = 100
    alpha: float = 0.5
    num_seeds: int = 2
    models_at_once: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("random", "groups"):
            raise ValueError(f"kind={self.kind!r}: use 'random' or 'groups'")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha} must lie strictly between 0 and 1")
        if self.kind == "groups" and self.alpha != type(self).alpha:
            raise ValueError(
                f"alpha={self.alpha} means nothing to kind='groups', which leaves out one of "
                f"num_subsets={self.num_subsets} groups at a time; don't set it"
            )
        if min(self.num_subsets, self.num_seeds, self.models_at_once) < 1:
            raise ValueError(
                f"num_subsets={self.num_subsets}, num_seeds={self.num_seeds}, "
                f"models_at_once={self.models_at_once}: all must be at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a bank's models were trained on and asked about.

    Attributes:
      model: `repr` of the module.
      training: recipe of the models.
      num_train: N.
      train_data: fingerprint of the training examples.
      query_data: fingerprint of the queries.
      start: hash of the parameters that models were fine-tuned from; empty for fresh ones.
    """

    model: str
    training: TrainSettings
    num_train: int
    train_data: str
    query_data: str
    start: str = added("")


@dataclasses.dataclass(frozen=True)
class Bank:
    """Outputs of retrained models on the queries.

    Attributes:
      members_MxS: training rows of each subset.
      losses_MxExQ: loss of each query under the model of each subset and seed, nats.
      margins_MxExQ: log odds of the true class, `o_y − logsumexp_{c≠y} o_c`; nan where the loss is
        not of classes.
      settings: settings that the subsets were drawn with.
      origin: model, recipe and data.
      seconds: time spent on training.
    """

    members_MxS: np.ndarray
    losses_MxExQ: np.ndarray
    margins_MxExQ: np.ndarray
    settings: BankSettings
    origin: Origin
    seconds: float

    @property
    def alpha(self) -> float:
        """Share of the training set per model; `1 − 1/M` or a little more for groups."""
        if self.settings.kind == "random":
            return self.settings.alpha
        return self.members_MxS.shape[1] / self.origin.num_train

    @property
    def identity(self) -> dict[str, Any]:
        """All that two banks must share to be mixed, as flat JSON values."""
        origin = plain(self.origin)
        recipe = {f"training.{name}": value for name, value in origin.pop("training").items()}
        return {
            "kind": self.settings.kind,
            "alpha": self.alpha,
            "num_seeds": self.settings.num_seeds,
            **origin,
            **recipe,
        }

    def runs(self, target: str) -> np.ndarray:
        """What a score should predict, for each model, `[M, E, Q]`.

        Args:
          target: `loss` (minus the loss) or `margin`; both grow when training helps.

        Raises:
          ValueError: another target, or margins of a loss without classes.
        """
        if target not in ("loss", "margin"):
            raise ValueError(f"target={target!r}: use 'loss' or 'margin'")
        objective = named_objective(self.origin.training.objective)
        if target == "margin" and not objective.classes:
            raise ValueError(
                f"target='margin' is about classes, but these models' loss is {objective.name}: "
                "use target='loss'"
            )
        return -self.losses_MxExQ if target == "loss" else self.margins_MxExQ

    def target(self, name: str = "loss") -> np.ndarray:
        """What a score should predict: the mean of `runs` over seeds, `[Q, M]`."""
        return self.runs(name).mean(axis=1).T

    @property
    def target_QxM(self) -> np.ndarray:
        """Minus the mean loss over seeds, `[Q, M]`."""
        return self.target("loss")

    def take(self, rows: Sequence[int] | np.ndarray) -> "Bank":
        """The bank of some of its subsets, with their share of the seconds."""
        rows = np.asarray(rows)
        return dataclasses.replace(
            self,
            members_MxS=self.members_MxS[rows],
            losses_MxExQ=self.losses_MxExQ[rows],
            margins_MxExQ=self.margins_MxExQ[rows],
            settings=dataclasses.replace(self.settings, num_subsets=len(rows)),
            seconds=self.seconds * len(rows) / len(self.members_MxS),
        )

    def halves(self) -> tuple["Bank", "Bank"]:
        """The banks of its first and second half of subsets: tune on one, report on the other.

        Raises:
          ValueError: fewer than two subsets.
        """
        if (total := len(self.members_MxS)) < 2:
            raise ValueError(f"a bank of {total} subsets can't be halved: it needs at least 2")
        return self.take(np.arange(total // 2)), self.take(np.arange(total // 2, total))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The differences between two flat descriptions in words, empty if there are none.

    >>> differences({"alpha": 0.5, "model": "MLP"}, {"alpha": 0.9, "model": "MLP"})
    'alpha: 0.5 and 0.9'
    """
    names = dict.fromkeys([*a, *b])  # a setting at its default may be written in one alone
    unequal = [name for name in names if a.get(name) != b.get(name)]
    return "; ".join(f"{name}: {a.get(name)!r} and {b.get(name)!r}" for name in unequal)


def merge(banks: Sequence[Bank]) -> Bank:
    """One bank of the subsets of several, drawn with different seeds.

    Args:
      banks: banks of one model, recipe, data, kind, alpha and number of seeds.

    Returns:
      Their subsets in order; its settings are the first bank's with the total number of subsets.

    Raises:
      ValueError: banks that can't be mixed; the message names every difference. Or a subset that
        is in two of them.
    """
    first = banks[0]
    for j, bank in enumerate(banks[1:], 1):
        if unequal := differences(first.identity, bank.identity):
            raise ValueError(f"bank 0 and bank {j} can't be mixed: {unequal}")
    members = np.concatenate([bank.members_MxS for bank in banks])
    if repeats := len(members) - len(np.unique(members, axis=0)):
        raise ValueError(
            f"{repeats} of {len(members)} subsets are in these banks twice "
            f"(seeds {[bank.settings.seed for bank in banks]}): give each bank its own seed"
        )
    return dataclasses.replace(
        first,
        members_MxS=members,
        losses_MxExQ=np.concatenate([bank.losses_MxExQ for bank in banks]),
        margins_MxExQ=np.concatenate([bank.margins_MxExQ for bank in banks]),
        settings=dataclasses.replace(first.settings, num_subsets=len(members)),
        seconds=sum(bank.seconds for bank in banks),
    )


def draw_subsets(num_train: int, settings: BankSettings) -> np.ndarray:
    """Training rows of each of M subsets, `[M, S]` int32, sorted within a row.

    `random`: `round(alpha N)` rows each; subset j depends on (seed, j) alone, so a larger bank
    extends a smaller one. `groups`: all rows but those of group j; groups are disjoint, of
    `floor(N / M)` rows each, and the remainder is in every subset.

    Raises:
      ValueError: a subset would be empty or whole.
    """
    m = settings.num_subsets
    if settings.kind == "groups":
        if not 2 <= m <= num_train:
            raise ValueError(
                f"num_train={num_train} examples can't be cut into num_subsets={m} groups; "
                f"use 2 to {num_train}"
            )
        size = num_train // m
        shuffled = np.random.default_rng(settings.seed).permutation(num_train)
        groups_MxG = shuffled[: m * size].reshape(m, size)
        rows = np.arange(num_train)
        return np.stack([np.setdiff1d(rows, group) for group in groups_MxG]).astype(np.int32)
    size = round(settings.alpha * num_train)
    if not 0 < size < num_train:
        raise ValueError(
            f"alpha={settings.alpha} of num_train={num_train} examples gives subsets of {size}; "
            "a subset must be neither empty nor the whole set"
        )
    return np.stack(
        [
            np.sort(np.random.default_rng([settings.seed, j]).permutation(num_train)[:size])
            for j in range(m)
        ]
    ).astype(np.int32)
