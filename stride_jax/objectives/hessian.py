"""The second derivative of a token's loss in its outputs, without writing out what has a form.

Letter of its own: n tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Hessian(NamedTuple):
    """`H = diag(d) − u uᵀ` of each token, whole blocks, or `Σ_c r_c r_cᵀ`.

    Attributes:
      diagonal: d, `[..., C]`; None where `whole` is given.
      rank_one: u, `[..., C]`; None for none.
      whole: H, `[..., C, C]`; None where it has another form.
      rows: r_c, `[n, C, O]`, of outputs O that are not the model's own; None likewise.
    """

    diagonal: jax.Array | None = None
    rank_one: jax.Array | None = None
    whole: jax.Array | None = None
    rows: jax.Array | None = None

    def flat(self) -> "Hessian":
        """With one axis of tokens, `[n, C]`."""
        diagonal, rank_one, whole, _ = self
        return Hessian(
            None if diagonal is None else diagonal.reshape(-1, diagonal.shape[-1]),
            None if rank_one is None else rank_one.reshape(-1, rank_one.shape[-1]),
            None if whole is None else whole.reshape(-1, *whole.shape[-2:]),
        )

    def total(self, w_n: jax.Array) -> jax.Array:
        """`Σ w H` of flat tokens, `[C, C]`."""
        if self.rows is not None:
            return jnp.einsum("n,nco,ncu->ou", w_n, self.rows, self.rows)
        if self.whole is not None:
            return jnp.einsum("n,ncd->cd", w_n, self.whole)
        assert self.diagonal is not None, "a diagonal, or whole blocks"
        total = jnp.diag(w_n @ self.diagonal)
        if self.rank_one is not None:
            total -= jnp.einsum("n,nc,nd->cd", w_n, self.rank_one, self.rank_one)
        return total

    def entry(self, c: jax.Array, other: jax.Array) -> jax.Array:
        """`H_{cc'}` of flat tokens, `[n]`."""
        if self.whole is not None:
            return self.whole[:, c, other]
        assert self.diagonal is not None, "a diagonal, or whole blocks"
        if self.rank_one is None:
            return self.diagonal[:, c] * (c == other)
        return self.diagonal[:, c] * (c == other) - self.rank_one[:, c] * self.rank_one[:, other]

    def along(self, right_CxO: jax.Array) -> jax.Array:
        """`q_oᵀ H q_o` of the columns q of `right_CxO`, flat tokens, `[n, O]`.

        >>> one = Hessian(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]]))
        >>> one.along(jnp.eye(2)).tolist()
        [[0.0, 2.0]]
        """
        if self.rows is not None:
            return (jnp.einsum("nro,ou->nru", self.rows, right_CxO) ** 2).sum(axis=1)
        if self.whole is not None:
            return jnp.einsum("co,ncd,do->no", right_CxO, self.whole, right_CxO)
        assert self.diagonal is not None, "a diagonal, or whole blocks"
        along = self.diagonal @ right_CxO**2
        return along if self.rank_one is None else along - (self.rank_one @ right_CxO) ** 2

    def root(self) -> jax.Array:
        """Rows r_c with `H = Σ_c r_c r_cᵀ`, `[..., C, C]`; `sqrt(p_c) (e_c − p)` of cross-entropy.

        With `v = u / sqrt(d)` it is `(I − beta v vᵀ) diag(sqrt(d))`, `2 beta − beta² ||v||² = 1`.

        >>> p = jnp.array([0.25, 0.75])
        >>> rows = Hessian(p, p).root()
        >>> bool(jnp.allclose(rows.T @ rows, jnp.diag(p) - jnp.outer(p, p), atol=1e-6))
        True
        """
        if self.whole is not None:
            values, vectors = jnp.linalg.eigh(self.whole)
            return jnp.sqrt(jnp.maximum(values, 0.0))[..., None] * jnp.moveaxis(vectors, -1, -2)
        roots, v = self._roots()
        rows = jnp.einsum("...c,cd->...cd", roots, jnp.eye(roots.shape[-1], dtype=roots.dtype))
        return rows if self.rank_one is None else rows - v[..., None] * self.rank_one[..., None, :]

    def leading(self, count: int) -> jax.Array:
        """Rows r_j whose `Σ_j r_j r_jᵀ` holds most of H and leaves no less than nothing of it over.

        The first columns of a Cholesky factor whose pivots are the largest diagonal that is left.
        Eigenvectors would serve as well, but inside a sharded program a CPU's `eigh` and the
        devices' gather can wait for each other for ever.

        Args:
          count: rows; as many as H has rank hold it all.

        Returns:
          `[..., count, C]`.

        >>> p = jnp.array([0.25, 0.75])
        >>> (row, none) = Hessian(p, p).leading(2)
        >>> bool(jnp.allclose(jnp.outer(row, row), jnp.diag(p) - jnp.outer(p, p), atol=1e-6))
        True
        >>> none.tolist()
        [0.0, 0.0]
        """
        root = self.root()
        rest = jnp.einsum("...ci,...cj->...ij", root, root)
        # Below that what is left is rounding, which a small pivot would blow up.
        least = 1e-6 * jnp.diagonal(rest, axis1=-2, axis2=-1).max(axis=-1)[..., None]
        own = []
        for _ in range(count):
            pivot = jnp.diagonal(rest, axis1=-2, axis2=-1).argmax(axis=-1)[..., None]
            column = jnp.take_along_axis(rest, pivot[..., None], axis=-1)[..., 0]
            size = jnp.take_along_axis(column, pivot, axis=-1)
            row = jnp.where(size > least, column / jnp.sqrt(jnp.maximum(size, 1e-30)), 0.0)
            rest -= row[..., :, None] * row[..., None, :]
            own.append(row)
        return jnp.stack(own, axis=-2)

    def mixed(self, s: jax.Array) -> jax.Array:
        """`Σ_c s_c r_c` of `root`, without the rows themselves, `[..., C]`.

        >>> p, s = jnp.array([0.25, 0.75]), jnp.array([1.0, -1.0])
        >>> bool(jnp.allclose(Hessian(p, p).mixed(s), s @ Hessian(p, p).root(), atol=1e-6))
        True
        """
        if self.whole is not None:
            return jnp.einsum("...c,...cd->...d", s, self.root())
        roots, v = self._roots()
        along = 0.0 if self.rank_one is None else (v * s).sum(-1, keepdims=True) * self.rank_one
        return roots * s - along

    def _roots(self) -> tuple[jax.Array, jax.Array]:
        """`sqrt(d)`, and `beta v` of `root`, which is nought without `rank_one`."""
        assert self.diagonal is not None, "the model's own outputs"
        roots = jnp.sqrt(self.diagonal)
        if self.rank_one is None:
            return roots, jnp.zeros_like(roots)
        v = jnp.where(roots > 0, self.rank_one / jnp.where(roots > 0, roots, 1.0), 0.0)
        power = (v**2).sum(axis=-1, keepdims=True)
        return roots, v / (1 + jnp.sqrt(jnp.maximum(1 - power, 0.0)))
