"""What of a run is still to be done, and whether it fits into memory."""

from collections.abc import Collection

from stride_jax.run.pipeline import Run
from stride_jax.run.planning import Extent, Names
from stride_jax.run.planning import refuse_too_large as refuse
from stride_jax.runtime import checkpoint


def refuse_too_large(run: Run, wanted: Collection[str]) -> None:
    """Refuse a run whose stages need more memory than there is, before the first of them begins.

    Args:
      run: its data are read.
      wanted: stages that it is to end with.

    Raises:
      ValueError: as `planning.refuse_too_large`.
    """
    if not (stages := left(run, wanted)):
        return
    train, groups = run.train, run.groups
    extent = Extent(len(train), len(run.query), train.inputs.shape[1:], run.data[1])
    names = Names(
        0 if groups is None else groups[1].groups, train.ids.itemsize + run.query.ids.itemsize
    )
    refuse(run.settings, extent, run.mesh, stages, names)


def left(run: Run, wanted: Collection[str]) -> set[str]:
    """The stages among some that have no product yet, `bank` among them where it has none."""
    products, stages = run.products, set(wanted) - {"data"}
    for stage in ("model", "operators"):
        if checkpoint.latest(products.path(stage)) is not None:
            stages.discard(stage)
    for stage in ("measurements", "recovery", "unit"):
        if products.path(stage).with_suffix(".npz").exists():
            stages.discard(stage)
    bank = run.settings.bank
    if "evaluation" in stages and bank is not None:
        first = min(bank.models_at_once, bank.num_subsets * bank.num_seeds)
        # As many models at once were trained here before.
        if not any((run.workdir / "bank").glob(f"*/models-00000-{first:05d}.npz")):
            stages.add("bank")
    return stages
