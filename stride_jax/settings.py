"""The method's two trees of settings: what makes an index, and what reads it.

They change different products: an index made once may be read in many ways.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from stride_jax.design import Design
from stride_jax.measure import MeasureSettings
from stride_jax.operators import BasisSettings, ClosedFormSettings, JointSettings
from stride_jax.recovery import LassoSettings, SelectionSettings
from stride_jax.runtime.settings import check_types
from stride_jax.taps import check_names

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """What makes an index; the defaults suit a classifier of a few thousand examples.

    Attributes:
      design: K, d, seed, and what subsets follow.
      taps: activations that the bases read: `final` at every site, `block2:mlp2` at the site
        `block2` alone (`taps_of`). None named: the one whose variation moves the logits most
        (`operators.tap_energies`), or all of them, with a warning, where the model has no suffix
        form.
      basis: features of the taps, one basis for each set of them.
      output_rank: O, buckets that the logits are folded into where the model has more classes than
        that (`operators.outputs`); 0 steers every logit by itself.
      kept: bytes of the store of the training set's heaviest examples (language models: tokens),
        whose scores are exact for every query without the data; shared out among sites. None for
        4 MiB where examples have one token, and for nothing where they are sequences, which it
        did not help (docs/lab.md).
      precision: of what the index stores of the training set, `float32` or `float16`: operators,
        curvature and kept examples. Half of it costs about 3e-4 of a score's size.
      sites: where operators act: `logit`, names of taps (residual sites), or `<tap>+logit` (a
        layer's output and the logits as one block: layer sites). Each is a block of its own;
        measurements add up. None named: of a classifier whose basis reads the input, the first
        layer and the logits, where the model says which layer that is (`TappedModel.layers`) and
        R O is at most 20,000; else the logits.
      fit: `closed_form` solves for the operators, `joint` trains them with the published losses.
      closed_form: settings of the closed form.
      joint: settings of training.
    """

    design: Design = Design()
    taps: tuple[str, ...] = ()
    basis: BasisSettings = BasisSettings()
    output_rank: int = 256
    kept: int | None = None
    precision: str = "float32"
    sites: tuple[str, ...] = ()
    fit: str = "closed_form"
    closed_form: ClosedFormSettings = ClosedFormSettings()
    joint: JointSettings = JointSettings()

    def __post_init__(self) -> None:
        check_types(self)
        if self.fit not in ("closed_form", "joint"):
            raise ValueError(f"fit={self.fit!r}: use 'closed_form' or 'joint'")
        if len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites={self.sites}: name each once")
        check_names(self.taps or None)
        for site in self._acting:
            check_names(self.taps_of(site) or None)
            if self.taps and not self.taps_of(site):
                raise ValueError(
                    f"taps={self.taps} name none for the site {site!r}: add one such as "
                    f"'{site}:{_tap(self.taps[0], self._acting)}'"
                )
        if min(self.output_rank, self.kept or 0) < 0:
            raise ValueError(
                f"output_rank={self.output_rank}, kept={self.kept} bytes: neither can be negative"
            )
        if self.precision not in ("float32", "float16"):
            raise ValueError(f"precision={self.precision!r}: use 'float32' or 'float16'")

    @property
    def _acting(self) -> tuple[str, ...]:
        """The sites, as far as they are named."""
        return self.sites or ("logit",)

    def taps_of(self, site: str) -> tuple[str, ...]:
        """The taps that a site's basis reads; empty while none are named.

        >>> own = IndexSettings(taps=("embedding", "block0:mlp0"), sites=("logit", "block0"))
        >>> own.taps_of("logit"), own.taps_of("block0")
        (('embedding',), ('embedding', 'mlp0'))
        """
        return tuple(
            tap
            for name in self.taps
            if (tap := _tap(name, self._acting)) == name or name == f"{site}:{tap}"
        )

    def by_site(self, make: Callable[[tuple[str, ...]], T]) -> dict[str, T]:
        """`{site: what is made of its taps}`, made once for sites that read the same ones."""
        made = {taps: make(taps) for taps in dict.fromkeys(map(self.taps_of, self._acting))}
        return {site: made[self.taps_of(site)] for site in self._acting}

    def every_tap(self) -> tuple[str, ...]:
        """The taps of all sites, each once."""
        return tuple(dict.fromkeys(tap for site in self._acting for tap in self.taps_of(site)))


def _tap(name: str, sites: tuple[str, ...]) -> str:
    """The tap of a name that may begin with one of the sites."""
    site, colon, tap = name.partition(":")
    return tap if colon and site in sites else name


BM25, FEATURES = "bm25", "features"
SOURCES = (BM25, FEATURES)
"""What can name candidates besides the sketch (`neighbours`)."""


@dataclasses.dataclass(frozen=True)
class ExactSettings:
    """How many examples are scored exactly, where the training data are at hand.

    Attributes:
      budget: examples per query; None for 300, or all if there are fewer.
      rounds: of candidates, each a share of the budget; each sees what those before it left. By
        hash every round is another Lasso.
      control: examples drawn at random, whose exact scores say how good the estimates are.
      shrink: quantile of the magnitudes of a row's scores by which all are shrunk towards zero
        (soft thresholding), before the token groups of a query are added up; 0 leaves them as they
        are.
      sources: what names candidates besides the sketch, each a quarter of the budget at most:
        `bm25`, sequences that share a query's words; `features`, examples whose activations point
        the same way, for one forward pass over the training data.
    """

    budget: int | None = None
    rounds: int = 3
    control: int = 64
    shrink: float = 0.0
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        if (self.budget or 0) < 0 or self.rounds < 1 or self.control < 0:
            raise ValueError(
                f"budget={self.budget}, rounds={self.rounds}, control={self.control}: give no "
                "negative number, and at least one round"
            )
        if not 0 <= self.shrink < 1:
            raise ValueError(f"shrink={self.shrink} is a quantile: it must lie in [0, 1)")
        if not set(self.sources) <= set(SOURCES) or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources={self.sources}: name any of {SOURCES}, each once, or none")
        if self.sources and self.budget == 0:
            raise ValueError(
                f"sources={self.sources} name candidates for exact scores, but budget=0: raise it, "
                "or leave sources out"
            )

    def allowed(self, num_train: int) -> int:
        """The budget for N examples.

        Raises:
          ValueError: a budget above N.
        """
        if self.budget is None:
            return min(300, num_train)
        if self.budget > num_train:
            raise ValueError(
                f"budget={self.budget} exact scores per query, but the index has {num_train} "
                "training examples: lower it, or leave it out"
            )
        return self.budget


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """What reads an index.

    Attributes:
      measure: how a query is measured under each operator.
      prior: p of the Lasso's penalty weights `||e_i||^-p`, `e_i = e_y − p` on the training example:
        one that the model has no doubt about can hardly matter, and its penalty is larger. 0 is
        the published Lasso.
      lasso: recovery.
      selection: how each query's lambda is chosen; by default it is the Lasso's own fraction.
      exact: how many examples are scored exactly, and what becomes of noise.
    """

    measure: MeasureSettings = MeasureSettings()
    prior: float = 0.25
    lasso: LassoSettings = LassoSettings()
    selection: SelectionSettings = SelectionSettings()
    exact: ExactSettings = ExactSettings()

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.prior <= 2:
            raise ValueError(f"prior={self.prior} must lie in [0, 2]")
