"""An index that grows: more training examples, without a pass over those that it has.

The closed form reads sums over examples, so the sums of new ones are added to the old sums, at the
basis that was fitted on the old.
"""

import dataclasses
from typing import Any

import numpy as np

from stride_jax import design as designs
from stride_jax import operators as ops
from stride_jax.examples import Examples, as_examples
from stride_jax.fitting import (
    Fixed,
    bases_of,
    curvatures_of,
    fishers,
    group_operators,
    pass_over,
    solve_operators,
    store_of,
)
from stride_jax.frozen import FrozenModel
from stride_jax.groups import Groups, labelled, sizes
from stride_jax.index import Index
from stride_jax.operators import kept as stores
from stride_jax.runtime.execution import Execution
from stride_jax.stride import frozen_for
from stride_jax.taps import Params, TappedModel


def append(
    tapped: TappedModel,
    params: Params,
    index: Index,
    inputs: Any,
    labels: Any,
    *,
    ids: Any = None,
    weights: Any = None,
    keys: Any = None,
    groups: Any = None,
    execution: Execution = Execution(),
) -> Index:
    """The index of the old training examples and these, without a pass over the old ones.

    Sums of the new examples are added to the old sums; the basis stays as it was fitted.

    Args:
      tapped: the model the index was fitted on.
      params: its parameters.
      index: from `fit` with `keep_moments`, or from `append`.
      inputs: the new examples, as in `fit`.
      labels: of each.
      ids: of each.
      weights: of each label.
      keys: of each; an old key joins the old examples that have it.
      groups: the groups of the new examples, as in `fit`; old names grow, new ones are added.
      execution: as in `fit`.

    Raises:
      ValueError: the index has no moments or is of another model, or an id is in it already; groups
        for an index without, or none for an index with groups.
    """
    if not index.moments:
        raise ValueError(
            "this index has no moments, so nothing can be added: fit it in closed form with "
            "keep_moments=True, and save it with them"
        )
    examples = as_examples(inputs, labels, ids, weights, keys)
    names, own = _grown_groups(index, groups, len(examples))
    if both := sorted(set(examples.ids.tolist()) & set(index.train_ids.tolist())):
        raise ValueError(
            f"{len(both)} of the new examples are in the index already, first {both[0]}: leave "
            "them out"
        )
    frozen = frozen_for(index, tapped, params, examples, execution)
    bases = bases_of(index.operators)
    everyone, all_keys = _grown_names(index, examples)
    subsets_Nxd = None
    if index.cluster_N is None:
        # The design of all examples: those of the old ones come out as they were.
        known = designs.known_membership(index.settings.design, everyone, all_keys)
        assert known is not None, "a hash design is known"
        subsets_Nxd = known[len(index.train_ids) :]
    fixed = Fixed(bases, curvatures_of(frozen, index.moments), index.content)
    new = pass_over(frozen, examples, subsets_Nxd, fixed, execution, own)
    old = index.moments.items()
    if own is not None:
        old = [(name, ops.with_groups(sums, own.groups)) for name, sums in old]
    total = {name: ops.add(sums, new.moments[name]) for name, sums in old}
    cluster_N = None
    if index.cluster_N is not None and new.cluster_N is not None:
        cluster_N = np.concatenate([index.cluster_N, new.cluster_N])
    solved = None
    if index.groups is not None and names is not None and own is not None:
        added = sizes(own)
        added[: len(index.groups)] += index.groups.sizes_G
        solved = Groups(names, added, group_operators(frozen, bases, total))
    return dataclasses.replace(
        index,
        operators=solve_operators(frozen, bases, total),
        train_ids=everyone,
        residual_N=np.concatenate([index.residual_N, new.residual_N]),
        norm_N=np.concatenate([index.norm_N, new.norm_N]),
        cluster_N=cluster_N,
        fisher=fishers(total, frozen),
        kept=_grown_kept(frozen, index, new.kept, (len(everyone), *examples.token_shape[1:])),
        keys=all_keys,
        moments=total,
        groups=solved,
    )


def _grown_names(index: Index, examples: Examples) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids and keys of the old and the new examples; no keys where neither have any."""
    everyone = np.concatenate([index.train_ids, examples.ids])
    if index.keys is None and examples.keys is None:
        return everyone, None
    pairs = (index.keys, index.train_ids), (examples.keys, examples.ids)
    return everyone, np.concatenate([ids if own is None else own for own, ids in pairs])


def _grown_kept(
    frozen: FrozenModel, index: Index, new: dict[str, ops.Kept], shape: tuple[int, ...]
) -> dict[str, ops.Kept]:
    """The heaviest tokens of the old and the new examples, by site.

    Args:
      frozen: the model.
      index: of the old examples.
      new: stores of the new ones, whose rows count from 0.
      shape: of all examples' tokens.
    """
    kept, bases = {}, bases_of(index.operators)
    for name, own in new.items():
        store = dataclasses.replace(own, row_H=own.row_H + len(index.train_ids))
        places = store_of(frozen, bases[name], name, shape).places
        both = name in index.kept
        kept[name] = stores.joined(index.kept[name], store, places) if both else store
    return kept


def _grown_groups(
    index: Index, groups: Any, num_examples: int
) -> tuple[np.ndarray | None, ops.Labels | None]:
    """Names of the old and new groups, and the groups of new examples."""
    if index.groups is None and groups is None:
        return None, None
    if index.groups is None:
        raise ValueError("groups given for an index without: leave them out, or fit it with groups")
    if groups is None:
        raise ValueError(
            f"this index has {len(index.groups)} groups: give groups=, the name of each new "
            "example's, None for those of none"
        )
    return labelled(groups, num_examples, index.groups.names)
