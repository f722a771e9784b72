"""Recovery problems, planted or measured, and the one check that every answer must pass.

The check is float64 NumPy over all N columns and shares no code with any solver.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import scipy.sparse

from stride_jax.design import Design, membership
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import read_run_settings
from stride_jax.runtime.progress import bars


@dataclasses.dataclass(frozen=True)
class Signals:
    """Measurements and the design they were taken with.

    Attributes:
      origin: where they are from.
      num_subsets: K.
      subsets_Nxd: membership.
      y_QxK: measurements.
    """

    origin: str
    num_subsets: int
    subsets_Nxd: np.ndarray
    y_QxK: np.ndarray


def plant(
    num_train: int, num_subsets: int, degree: int, queries: int, sparsity: int, noise: float
) -> Signals:
    """Sparse influences of ±(½ … 1½) seen through M, and Gaussian noise."""
    subsets = np.asarray(membership(Design(num_subsets, degree), np.arange(num_train)), np.int32)
    rng = np.random.default_rng(0)
    y = np.empty((queries, num_subsets))
    for row in y:
        support = rng.choice(num_train, sparsity, replace=False)
        w = rng.uniform(0.5, 1.5, sparsity) * rng.choice([-1, 1], sparsity)
        row[:] = np.bincount(subsets[support].reshape(-1), np.repeat(w, degree), num_subsets)
    y += noise * y.std() * rng.normal(size=y.shape)
    return Signals(f"planted, {sparsity} influences, noise {noise}", num_subsets, subsets, y)


def measured(workdir: pathlib.Path, queries: int) -> Signals:
    """What a run measured, with the design that it drew for its own examples."""
    settings = read_run_settings(workdir)
    run, design = Run(settings, workdir, bars), settings.index.design
    subsets = np.asarray(membership(design, run.train.ids), np.int32)
    y = run.measurements[:queries].astype(np.float64)
    return Signals(f"measured, {workdir.name}", design.num_subsets, subsets, y)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What every solver is asked.

    Attributes:
      num_subsets: K.
      subsets_Nxd: membership.
      y_QxK: float64 measurements, centred, and scaled so that each lambda_max is 1.
      fraction: lambda over lambda_max, so lambda itself.
      relative_gap: duality gap over `½ ||y||²` to reach.
      cores: how many a solver may keep busy.
    """

    num_subsets: int
    subsets_Nxd: np.ndarray
    y_QxK: np.ndarray
    fraction: float
    relative_gap: float
    cores: int

    @property
    def columns(self) -> scipy.sparse.csc_matrix:
        """M as opponents want it: float64 CSC."""
        n, degree = self.subsets_Nxd.shape
        ends = np.arange(0, n * degree + 1, degree, dtype=np.int32)
        parts = (np.ones(n * degree), self.subsets_Nxd.astype(np.int32).reshape(-1), ends)
        return scipy.sparse.csc_matrix(parts, shape=(self.num_subsets, n))


def rows_of(scores: Any) -> scipy.sparse.csr_array:
    """An answer's scores as compressed rows, whatever form the solver gave them."""
    if isinstance(scores, list):
        return scipy.sparse.csr_array(
            scipy.sparse.vstack([scipy.sparse.csr_array(part) for part in scores])
        )
    return scipy.sparse.csr_array(scores)


def correlations(subsets_Nxd: np.ndarray, r_QxK: np.ndarray) -> np.ndarray:
    """`max_i |m_iᵀ r|` of each query in float64, `[Q]`; no solver's code is used."""
    r_KxQ = np.ascontiguousarray(r_QxK.T)
    most = np.zeros(len(r_QxK))
    for at in range(0, len(subsets_Nxd), 2**15):
        some = sum(r_KxQ[column] for column in subsets_Nxd[at : at + 2**15].T)
        most = np.maximum(most, np.abs(some).max(axis=0))
    return most


def relative_gaps(problem: Problem, rows: np.ndarray, scores: Any, intercept: bool) -> np.ndarray:
    """Duality gap over `½ ||y||²` of each answer, in float64 over all N columns.

    The dual point is the answer's own residual, shrunk until it is feasible.
    """
    y, w = problem.y_QxK[rows], rows_of(scores)
    degree, penalty = problem.subsets_Nxd.shape[1], problem.fraction
    r = y.copy()
    for q in range(len(rows)):
        part = slice(w.indptr[q], w.indptr[q + 1])
        ids, values = np.asarray(w.indices[part]), np.asarray(w.data[part])
        flat = problem.subsets_Nxd[ids].reshape(-1)
        r[q] -= np.bincount(flat, np.repeat(values.astype(float), degree), problem.num_subsets)
    if intercept:
        r -= r.mean(axis=1, keepdims=True)
    theta = r / np.maximum(1, correlations(problem.subsets_Nxd, r) / penalty)[:, None]
    l1 = np.asarray(abs(w).astype(float).sum(axis=1)).reshape(-1)
    primal = 0.5 * (r**2).sum(axis=1) + penalty * l1
    half_yy = 0.5 * (y**2).sum(axis=1)
    return (primal - half_yy + 0.5 * ((y - theta) ** 2).sum(axis=1)) / half_yy


def pose(signals: Signals, fraction: float, relative_gap: float, cores: int) -> Problem:
    """The problem all are asked: centred measurements in units of their lambda_max."""
    y = signals.y_QxK - signals.y_QxK.mean(axis=1, keepdims=True)
    y /= correlations(signals.subsets_Nxd, y)[:, None]
    return Problem(signals.num_subsets, signals.subsets_Nxd, y, fraction, relative_gap, cores)
