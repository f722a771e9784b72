"""Memory that a run will need, stage by stage, from shapes alone: nothing is compiled.

Counted is what a stage surely holds at once, whatever the compiler makes of it: a lower bound, so
that no run is refused that would fit. What `execution.memory` limits and the program's own size are
left out.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from stride_jax.operators import passes
from stride_jax.run.planning.sizes import FLOAT, Bytes, Names, Sizes, on_one
from stride_jax.run.planning.stages import Extent, scene_of
from stride_jax.run.settings import RunSettings

# Bytes of a pair in a table of scores: two rows, rank and score.
_PAIR = 24


@dataclasses.dataclass(frozen=True)
class Need:
    """What one moment of a stage needs.

    Attributes:
      stage: its name, one of `stages.STAGES`, or `bank` for the training of its models.
      what: what takes most of it, in words.
      held: with all that earlier stages leave behind.
      settings: names of what would lower it: settings, `num_train` or `num_queries`.
    """

    stage: str
    what: str
    held: Bytes
    settings: tuple[str, ...]


def needs(settings: RunSettings, extent: Extent, mesh: Mesh, names: Names = Names()) -> list[Need]:
    """What every stage of a run surely holds, in the order of the stages; some have two moments.

    Args:
      settings: of the run.
      extent: amount of data.
      mesh: devices of this process and of the others.
      names: what else is known of the data.
    """
    own = Sizes(scene_of(settings, extent, mesh, unnamed=min), names)
    return [*_model(own), *_operators(own), *_answers(own), *_banks(own)]


def _model(own: Sizes) -> Iterator[Need]:
    """A step of training with the checkpoints before it, and checkpoints beside those read back."""
    count, train = own.settings.num_checkpoints, own.settings.train
    before = (count - 1) * own.params
    # On the host the training set's row numbers, and the order of an epoch.
    step = Bytes(2 * FLOAT * own.num_train) + (
        own.in_training(own.state + before, own.batch(own.num_train))
        if own.is_sharded
        else own.in_training(own.state, own.batch(own.num_train)) + Bytes(before)
    )
    names = ("train.batch_size", "num_checkpoints")
    yield Need("model", f"a step of {train.batch_size} examples", step, names)
    both = own.trained + (Bytes() if own.is_sharded else Bytes(count * own.params))
    yield Need("model", f"{count} checkpoints", both, ("num_checkpoints",))


def _operators(own: Sizes) -> Iterator[Need]:
    return _joint(own) if own.settings.index.fit == "joint" else _closed_form(own)


def _closed_form(own: Sizes) -> Iterator[Need]:
    """A batch of the pass, and the solution; sums of all sites are held until all are solved.

    A sum is two arrays (Kahan) and a batch's share of it a third; a solution is two, its
    right-hand side among them.
    """
    scene, ranks = own.scene, {name: basis.rank for name, basis in own.scene.bases.items()}
    sums, batches, solutions = own.trained, [], []
    for (name, site), matrices in zip(scene.frozen.sites.items(), own.matrices, strict=True):
        form, width, rank = scene.frozen.forms[name], site.width, ranks[name]
        is_exact = form == "exact"
        whole = FLOAT * width * (width + 1) // 2 * rank**2 if is_exact else 0
        fixed = whole + FLOAT * (rank**2 + width**2 + own.names.groups * rank * width)
        sums += own.each(2 * fixed) + own.split(2 * matrices)
        extent = own.tokens, scene.extent.num_classes
        size, _ = passes.batch_sizes(
            extent, (rank, width), own.num_train, scene.execution, scene.mesh
        )
        rows = FLOAT * size / scene.mesh.size * own.tokens * (rank + width)
        batches.append(own.each(fixed + rows) + own.split(matrices))
        factor = FLOAT * (rank * width) ** 2 if is_exact else 0
        solutions.append(own.each(factor) + own.split(2 * matrices))
    names = ("index.design.num_subsets", "index.basis.rank", "index.output_rank")
    what = f"sums of {own.num_subsets} subsets of rank {max(ranks.values())}"
    for moments in (batches, solutions):
        most = max(moments, key=lambda held: held.devices)
        yield Need("operators", what, sums + most, names)


def _joint(own: Sizes) -> Iterator[Need]:
    """The whole training set, observed; then training on it, on every device."""
    scene, frozen, count = own.scene, own.scene.frozen, own.num_train * own.tokens
    logits = FLOAT * count * scene.extent.num_classes
    taps = jax.eval_shape(frozen.tapped.forward, frozen.params, scene.one.inputs)[1]
    activations = FLOAT * own.num_train * sum(math.prod(v.shape) for v in taps.values())
    names = ("num_train", "index.design.num_subsets", "index.basis.rank")
    # Batches on the host, and the array that they are joined to.
    observed = own.trained + Bytes(2 * (logits + activations))
    yield Need("operators", "outputs for all examples", observed, names)
    # Matrices, their two moments and their gradient; the members of each subset.
    members = 2 * FLOAT * own.num_train * own.settings.index.design.degree
    rank = max(basis.rank for basis in scene.bases.values())
    training = own.trained + own.each(logits + FLOAT * count * rank)
    training += own.split(members + 4 * max(own.matrices)) + on_one(activations)
    yield Need("operators", "joint training on all examples", training, names)


def _answers(own: Sizes) -> Iterator[Need]:
    """Measurements, scores, the table of all of them, and other methods' scores beside them."""
    settings, queries, examples = own.settings, own.num_queries, own.num_train
    names = ("num_queries", "index.design.num_subsets")
    what = f"measurements of {queries} queries by {own.num_subsets} subsets"
    yield Need("measurements", what, own.measured, names)
    names, what = ("num_queries", "num_train"), f"scores of {queries} x {examples}"
    if not own.by_content:
        # The subsets of all examples, on each device.
        table = (2 if own.num_subsets < 2**15 else 4) * settings.index.design.degree * examples
        yield Need(
            "recovery", f"subsets of {examples} examples", own.measured + own.each(table),
            ("num_train", "index.design.degree"),
        )  # fmt: skip
    elif not own.is_listed:
        # Of a block of queries two arrays, by groups of tokens.
        row = FLOAT * own.token_groups * examples
        block = min(queries, max(1, settings.execution.memory // 2 // (8 * row)))
        held = own.measured + Bytes(2 * row * block)
        yield Need("recovery", f"scores of {block} x {examples}", held, names)
    if own.is_dense:
        # Blocks of them, and the array that they are joined to.
        yield Need("recovery", what, own.measured + Bytes(2 * own.scores), names)
        if not settings.read.exact.shrink:  # which leaves zeros
            stored = queries * min(settings.top_k or examples, examples)
            held = own.scored + Bytes(stored * (_PAIR + own.names.id_bytes))
            yield Need("attribution", f"a table of {stored} scores", held, ("top_k", *names))
    if settings.bank is not None:
        # Of one method after the other, and the same in float64.
        others = 3 * own.scores
        yield Need("evaluation", f"{what} by one more method", own.scored + Bytes(others), names)


def _banks(own: Sizes) -> Iterator[Need]:
    """Models trained together, each on a device of its own where there are several; or one after
    the other over all devices, where parameters are split.
    """
    unit = own.settings.unit
    banks = {"unit": unit and unit.bank, "bank": own.settings.bank}
    for stage, bank in banks.items():
        if bank is None:
            continue
        members = round(bank.alpha * own.num_train)
        if bank.kind == "groups":
            members = own.num_train - own.num_train // bank.num_subsets
        tables = own.scored + Bytes(FLOAT * bank.num_subsets * members)
        if own.is_sharded:
            moment = own.each((own.state + own.batch(members)) / own.scene.mesh.size)
            yield Need(stage, "a model over all devices", tables + moment, ("train.batch_size",))
            continue
        count = min(bank.models_at_once, bank.num_subsets * bank.num_seeds)
        each = count // math.gcd(count, own.devices)
        step = own.state + own.order(members) + own.batch(members)
        answer = own.params + own.num_queries * own.output
        for moment, names in ((step, ("train.batch_size",)), (answer, ("num_queries",))):
            held = tables + Bytes(0, each * moment, count * moment) + own.each(own.data)
            yield Need(
                stage, f"{count} models trained together", held, (f"{stage}.models_at_once", *names)
            )
