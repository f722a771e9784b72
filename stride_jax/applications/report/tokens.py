"""Which tokens of a training text speak to which token of a query.

`M[t', t] = Σ_sites <V_{x,t'}, b_{i,t} e_{i,t}ᵀ>`: the exact score of text i for query x is the sum
over the query's tokens t' and the text's tokens t (docs/method.md §8.2).

Letters of its own: U training texts, X tokens of the query.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax import exact
from stride_jax import operators as ops
from stride_jax.applications.report.queries import Asked
from stride_jax.observed import Context, Observed, as_training
from stride_jax.operators.basis import example_features
from stride_jax.run.pipeline import Run
from stride_jax.runtime.precision import precise
from stride_jax.taps import Params

_STEPS = 9
"""Shares are told in ninths of the largest, as letters: `j` for none, `s` for it, `a` against."""


def agreements(
    run: Run, asked: Sequence[Asked], lists: Sequence[Sequence[tuple[int, float, str]]], count: int
) -> list[dict[int, str]]:
    """For each query `{place in its list: a letter for each pair of tokens}`.

    A pair of a query and a text has a letter for every token of the query and, for each of these,
    every token of the text; relative to the pair's largest share. Behind the query's tokens stand
    those of what it is held against.

    Args:
      run: of text, with an index that has its curvature; others have no shares.
      asked: the queries.
      lists: each query's training rows, largest score first.
      count: texts at either end of a list that are told.
    """
    if not run.settings.is_text or not run.index.fisher or not count:
        return [{} for _ in asked]
    told = []
    pairs = list(zip(asked, lists, strict=True))
    for own, entries in run.progress(pairs, desc="tokens"):
        helping = [i for i, one in enumerate(entries) if one[1] > 0][:count]
        hurting = [i for i, one in enumerate(entries) if one[1] < 0][-count:]
        places = [*helping, *hurting]
        if not places:
            told.append({})
            continue
        rows = np.array([entries[i][0] for i in places])
        matrices_UxXxT = token_scores(run, own, rows)
        sizes = run.corpus.train.sizes_N[rows].tolist()
        told.append({
            place: _letters(matrix[:, :size])
            for place, matrix, size in zip(places, matrices_UxXxT, sizes, strict=True)
        })  # fmt: skip
    return told


def token_scores(run: Run, asked: Asked, rows: np.ndarray) -> np.ndarray:
    """`[U, X, T]`, in the relative unit of `direct`; sums over X and T are exact scores.

    Args:
      run: of text, with an index that has its curvature.
      asked: a query of X tokens.
      rows: training rows; as many at all calls, so that one program serves them.
    """
    frozen, index = run.frozen, run.index
    chunk = frozen.observe(run.train.take(rows))
    read = as_training(chunk.observed, frozen.settings.closed_form.doubt)
    parts, what = [], ops.named_question(asked.question)
    for sign, examples, size_S in zip((1, -1), asked.examples, asked.sizes, strict=False):
        v = exact.directions(frozen, index, examples, 1, question=what)
        total: Any = 0.0
        for name, site in frozen.sites.items():
            basis = index.operators[name].basis
            context = chunk.contexts[name]
            params = run.model.params if site.reads_params else None
            total += np.asarray(_token_scores(site, params, basis, v[name], read, context))
        # Every prompt is a part of the mean, and padding behind it none of the query.
        length = total.shape[1] // len(examples)
        kept = [i * length + t for i, size in enumerate(size_S.tolist()) for t in range(size)]
        parts.append(sign / len(examples) * total[:, kept])
    return np.concatenate(parts, axis=1)


@jax.jit
@precise
def _token_scores(
    site: ops.Site,
    params: Params,
    basis: ops.Basis,
    v_XxRxO: jax.Array,
    read: Observed,
    context: Context,
) -> jax.Array:
    b_UxTxR = example_features(basis, read.activations)
    e_UxTxO = site.errors(params, read, context)
    return jnp.einsum("xro,utr,uto->uxt", v_XxRxO, b_UxTxR, e_UxTxO)


def _letters(matrix_XxT: np.ndarray) -> str:
    """A letter for each entry, row by row.

    >>> _letters(np.array([[1.0, -1.0], [0.0, 0.5]]))
    'sajn'
    """
    largest = float(np.abs(matrix_XxT).max())
    steps = np.rint(_STEPS * matrix_XxT / (largest or 1.0)).astype(int)
    return "".join(chr(ord("j") + step) for step in steps.ravel().tolist())
