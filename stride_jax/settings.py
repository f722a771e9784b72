"""The method's two trees of settings: what makes an index, and what reads it.

They change different products: an index made once may be read in many ways.
"""

import dataclasses

from stride_jax.design import Design
from stride_jax.measure import MeasureSettings
from stride_jax.operators import BasisSettings, ClosedFormSettings, JointSettings
from stride_jax.recovery import LassoSettings, SelectionSettings
from stride_jax.runtime.settings import check_types
from stride_jax.taps import check_names


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """What makes an index; the defaults suit a classifier of a few thousand examples.

    Attributes:
      design: K, d, seed.
      taps: activations the basis reads; none named: the one whose variation moves the logits most
        (`operators.tap_energies`), or all of them, with a warning, where the model has no suffix
        form.
      basis: features of the taps.
      output_rank: O, buckets that the logits are folded into where the model has more classes than
        that (`operators.outputs`); 0 steers every logit by itself.
      sites: where operators act, `logit` or names of taps (residual sites). Each is a block of
        its own; measurements add up.
      fit: `closed_form` solves for the operators, `joint` trains them with the published losses.
      closed_form: settings of the closed form.
      joint: settings of training.
    """

    design: Design = Design()
    taps: tuple[str, ...] = ()
    basis: BasisSettings = BasisSettings()
    output_rank: int = 256
    sites: tuple[str, ...] = ("logit",)
    fit: str = "closed_form"
    closed_form: ClosedFormSettings = ClosedFormSettings()
    joint: JointSettings = JointSettings()

    def __post_init__(self) -> None:
        check_types(self)
        if self.fit not in ("closed_form", "joint"):
            raise ValueError(f"fit={self.fit!r}: use 'closed_form' or 'joint'")
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites={self.sites}: name at least one, each once")
        check_names(self.taps or None)
        if self.output_rank < 0:
            raise ValueError(f"output_rank={self.output_rank} can't be negative")


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
    """

    measure: MeasureSettings = MeasureSettings()
    prior: float = 0.25
    lasso: LassoSettings = LassoSettings()
    selection: SelectionSettings = SelectionSettings()

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.prior <= 2:
            raise ValueError(f"prior={self.prior} must lie in [0, 2]")
