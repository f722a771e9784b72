"""Operators as a tool: outputs of the frozen model as if some examples had been trained on more.

**Strength.** `steer(…, subset=k, strength=1)` answers for a training loss in which the weight of
subset k's members is doubled, one more copy of each; −1 leaves them out; in between and beyond to
first order. With the loss `Σ_i L_i + ε Σ_{i in A_k} L_i` the optimum moves by (docs/method.md §5.1)

    ε (Σω F)⁻¹ Σ_{i in A_k} g_i  ≈  ε size_k a_k

where damping makes the step smaller: weak directions of F hardly move. A measured unit
(`Index.unit`) is multiplied in where it is known. Several sites add up, as their measurements do.

**Networks.** The first order is one about an optimum. A network trained without weight decay has
none: retrained with the same seed, .1 % more weight moves its logits half as far as 100 % do, and
only means over many seeds say what a subset does (docs/lab.md). At residual sites the curvature is
that of the training errors, which are almost none where the model fits its data: shifts are far too
large there (150 times on an MLP), so steer with the logit site, or with a layer site, whose
curvature is that of the outputs.

**Without this library.** `operators_pytree` gives plain arrays; `save_operators` writes them, and
`load_operators` reads them, as `.npz` or `.safetensors`. For `own = tree["logit"]` and activations
`h[tap]` of shape `[…, D]` the shift of the logits is

    taps = sorted(own["mean"])
    x = concatenate([(h[t] - own["mean"][t]) / own["scale"][t] for t in taps], -1)
    b = concatenate([x @ own["projection"], ones((*x.shape[:-1], 1))], -1)
    s = strength * b @ (own["size"][k] * own["a"][k])
    C, O = own["signs"].size, s.shape[-1]                      # where the logits are folded;
    s = s[..., arange(C) % O] * own["signs"] * sqrt(O / C)     # else leave both lines out

and `logits + s` are the steered ones. At a site that is the name of a tap, `s` is added to that
tap's activation instead, before the model's remaining layers run. At a site `<tap>+logit` its
first D columns are added there, and the others to the logits that come out.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stride_jax.frozen import resolve
from stride_jax.index import Index
from stride_jax.inputs import on_device, shapes
from stride_jax.observed import forward_batch
from stride_jax.operators import Operators, example_features
from stride_jax.runtime.digests import parameters_fingerprint
from stride_jax.runtime.files import (
    UnreadableFileError,
    atomic_path,
    first_line,
    read_arrays,
    reading,
    write_arrays,
)
from stride_jax.taps import Params, TappedModel

Tree = dict[str, dict[str, Any]]


def steer(
    tapped: TappedModel,
    params: Params,
    index: Index,
    inputs: Any,
    *,
    subset: Any = None,
    weights: Any = None,
    group: str | None = None,
    without: str | None = None,
    strength: Any = 1.0,
) -> jax.Array:
    """Logits as if a subset, a combination of subsets, or a group had more weight in training.

    Pure: works under `jit`, `grad` and `vmap`, over `subset`, `weights` or `strength`.

        shifts = jax.vmap(lambda k: steer(tapped, params, index, x, subset=k))(jnp.arange(K))

    Args:
      tapped, params: the model the index was fitted on.
      index: from `fit`.
      inputs: `[B, ...]` any inputs of the model, an array or a tree of them.
      subset: k, one of the design's subsets; by content, a cluster.
      weights: `[K]`, a combination of them: subset k with strength `weights[k]`.
      group: name of a group that `fit` was given.
      without: name of a group that is left out: `group` with the opposite strength.
      strength: 1 for one more copy of the members, −1 for none of them.

    Returns:
      Logits in the model's own shape, float32.

    Raises:
      ValueError: none or several of subset, weights, group and without; a subset, weights or a name
        that the index does not have; parameters other than the index's.

    >>> import stride_jax
    >>> model = stride_jax.from_function(lambda w, x: (x @ w, {"input": x}))
    >>> x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    >>> w, y = np.eye(4, 3, dtype=np.float32), np.arange(60) % 3
    >>> settings = stride_jax.IndexSettings(design=stride_jax.Design(20, 4))
    >>> index = stride_jax.fit(model, w, x, y, settings, groups=["odd", "even"] * 30)
    >>> steer(model, w, index, x[:2], without="even").shape
    (2, 3)
    """
    _check_parameters(index, params)
    a = _matrices(index, subset, weights, group, without)
    return _steered(tapped, params, index, inputs, a, strength * index.factor)


def _check_parameters(index: Index, params: Params) -> None:
    """Refuse parameters other than the index's, unless they are being traced."""
    if not index.model or any(isinstance(v, Tracer) for v in jax.tree.leaves(params)):
        return
    with jax.ensure_compile_time_eval():
        other = parameters_fingerprint(params)
    if other != index.model:
        raise ValueError(
            f"these parameters (fingerprint {other}) are not those the index was fitted on "
            f"({index.model}): load that checkpoint, or fit an index for this one"
        )


def _matrices(
    index: Index, subset: Any, weights: Any, group: str | None, without: str | None
) -> dict[str, jax.Array]:
    """The one steering matrix of each site that is asked for, `[R, O]`, in its own size."""
    asked = {"subset": subset, "weights": weights, "group": group, "without": without}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"steer needs one of {', '.join(asked)}; got {' and '.join(given) or 'none'}"
        )
    if group is not None or without is not None:
        if index.groups is None:
            raise ValueError(
                f"{given[0]}={asked[given[0]]!r}, but this index has no groups: fit it with "
                "groups=, a name for each example"
            )
        row = index.groups.row(str(asked[given[0]]))
        sign = 1.0 if without is None else -1.0
        return {name: sign * _sized(own, row) for name, own in index.groups.operators.items()}
    k = index.settings.design.num_subsets
    if weights is not None:
        if np.shape(weights) != (k,):
            raise ValueError(
                f"weights of shape {np.shape(weights)} for {k} subsets: give one for each"
            )
        return {name: _weighted(own, weights) for name, own in index.operators.items()}
    if not isinstance(subset, Tracer) and not (
        np.ndim(subset) == 0 and np.issubdtype(np.result_type(subset), np.integer)
        and 0 <= int(subset) < k
    ):  # fmt: skip
        raise ValueError(f"subset={subset!r}: give one of the {k} subsets, 0 … {k - 1}")
    return {name: _sized(own, subset) for name, own in index.operators.items()}


def _sized(own: Operators, row: Any) -> jax.Array:
    return own.size_K[row] * own.a_KxRxO[row].astype(jnp.float32)


def _weighted(own: Operators, weights: Any) -> jax.Array:
    return jnp.einsum("k,kro->ro", jnp.asarray(weights) * own.size_K, own.a_KxRxO)


def _steered(
    tapped: TappedModel,
    params: Params,
    index: Index,
    inputs: Any,
    a: Mapping[str, jax.Array],
    strength: Any,
) -> jax.Array:
    """Logits with every site's shift added."""
    inputs = on_device(inputs)
    frozen = resolve(tapped, params, shapes(inputs, 1), index.settings, signs_C=index.signs_C)
    shape = jax.eval_shape(frozen.tapped.forward, params, inputs)[0].shape
    labels = jnp.zeros(shape[:-1], jnp.int32)  # nothing here reads them
    observed = forward_batch(frozen.tapped, params, inputs, labels, jnp.ones(shape[:-1]))
    logits = observed.logits_NxTxC
    for name, site in frozen.sites.items():
        b_BxTxR = example_features(index.operators[name].basis, observed.activations)
        context = site.context(observed, inputs)
        logits = logits + site.shift(params, strength * a[name], b_BxTxR, context)
    return logits.reshape(shape)


# ── plain arrays ─────────────────────────────────────────────────────────────────────────────────


def operators_pytree(index: Index) -> Tree:
    """An index' operators as nested dicts of float32 arrays, which need nothing of this library.

    Args:
      index: from `fit`.

    Returns:
      `{site: {"mean": {tap: [D]}, "scale": {tap: []}, "projection": [D, R − 1], "a": [K, R, O],
      "size": [K], "signs": [C], "groups": {name: [R, O]}}}`: `signs` where the logits are folded;
      `groups` where there are any, in their own size. A unit that is known is multiplied into the
      sizes. The module's docstring has the five lines that apply them.

    Raises:
      ValueError: a basis with an MLP, which has more to it than a projection.
    """
    tree: Tree = {}
    for site, own in index.operators.items():
        if "inner" in own.basis.weights:
            raise ValueError("basis kind='mlp' is no projection: fit the index with kind='linear'")
        tree[site] = {
            "mean": dict(own.basis.mean),
            "scale": dict(own.basis.scale),
            "projection": own.basis.weights["projection"],
            "a": own.a_KxRxO,
            "size": own.size_K * index.factor,
        }
        if own.signs_C is not None:
            tree[site]["signs"] = own.signs_C
        if index.groups is not None:
            solved = index.groups.operators[site]
            tree[site]["groups"] = {
                str(name): index.factor * _sized(solved, row)
                for row, name in enumerate(index.groups.names)
            }
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree)


def save_operators(path: str | os.PathLike[str], tree: Tree) -> None:
    """Write what `operators_pytree` gives as `.npz`, or as `.safetensors`; atomically.

    Arrays are named `site:a`, `site:mean:tap`, `site:groups:name`, and so on.

    Raises:
      ValueError: another ending of the path.
      ModuleNotFoundError: safetensors is not installed.
    """
    arrays = {name: np.asarray(value) for name, value in _flat(tree).items()}
    if _is_safetensors(path):
        with atomic_path(path) as temporary:
            _safetensors().save_file(arrays, temporary)
    else:
        write_arrays(path, **arrays)


def load_operators(path: str | os.PathLike[str]) -> Tree:
    """Read what `save_operators` wrote, as NumPy arrays.

    Raises:
      UnreadableFileError: torn, or another file.
    """
    if _is_safetensors(path):
        load = _safetensors().load_file
        try:
            arrays = load(path)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise UnreadableFileError(
                f"{path} can't be read as safetensors ({first_line(error)})"
            ) from error
    else:
        arrays = read_arrays(path)
    tree: Tree = {}
    with reading(path, "operators", "give a file that save_operators wrote"):
        for name, value in arrays.items():
            site, part, rest = (*name.split(":", 2), "", "")[:3]
            if rest:
                tree.setdefault(site, {}).setdefault(part, {})[rest] = value
            else:
                tree.setdefault(site, {})[part] = value
    needed = {"mean", "scale", "projection", "a", "size"}
    if not tree or any(needed - set(own) for own in tree.values()):
        raise UnreadableFileError(f"{path} holds no operators: save_operators did not write it")
    return tree


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        own = f"{before}{name}"
        flat |= _flat(value, f"{own}:") if isinstance(value, Mapping) else {own: value}
    return flat


def _is_safetensors(path: str | os.PathLike[str]) -> bool:
    if (ending := os.path.splitext(path)[1]) not in (".npz", ".safetensors"):
        raise ValueError(f"{os.fspath(path)!r} ends in {ending!r}: use .npz or .safetensors")
    return ending == ".safetensors"


def _safetensors() -> Any:
    try:
        import safetensors.numpy  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a .safetensors file needs the package safetensors: pip install safetensors, or "
            "write .npz"
        ) from error
    return safetensors.numpy
