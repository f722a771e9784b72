"""A sentence encoder trained to attribute, after AirRep: W. Sun et al., 2025.

A linear map of the encoder's vectors is trained so that a subset's summed similarities to a query
follow what models retrained on these subsets say; AirRep trains the whole encoder, and weights the
examples of a subset. It costs the retrainings; its figure must come from other subsets.

Letters of its own: M retrained subsets, D features.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class TrainedEncoderSettings:
    """The training.

    Attributes:
      steps: of Adam, all queries and subsets in each; 0 for the encoder as it is.
      learning_rate: of Adam.
    """

    steps: int = 100
    learning_rate: float = 1e-2


def _standard(values_QxM: jax.Array) -> jax.Array:
    centred = values_QxM - values_QxM.mean(axis=1, keepdims=True)
    return centred / jnp.maximum(jnp.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames="settings")
def _trained(
    query_QxD: jax.Array, sums_MxD: jax.Array, target_QxM: jax.Array,
    settings: TrainedEncoderSettings,
) -> jax.Array:  # fmt: skip
    wanted_QxM = _standard(target_QxM)

    def loss(map_DxD: jax.Array) -> jax.Array:
        own_QxM = (query_QxD @ map_DxD) @ (sums_MxD @ map_DxD).T
        return -(_standard(own_QxM) * wanted_QxM).sum(axis=1).mean()

    tx = optax.adam(settings.learning_rate)

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        map_DxD, moments = state
        updates, moments = tx.update(jax.grad(loss)(map_DxD), moments)
        return (optax.apply_updates(map_DxD, updates), moments), None

    start = jnp.eye(query_QxD.shape[1])
    return jax.lax.scan(step, (start, tx.init(start)), length=settings.steps)[0][0]


def score(
    query_QxD: np.ndarray, train_NxD: np.ndarray, members_MxS: np.ndarray, target_QxM: np.ndarray,
    settings: TrainedEncoderSettings,
) -> np.ndarray:  # fmt: skip
    """`w_qi = <A v_q, A v_i>`, A such that `Σ_{i in subset} w_qi` correlates with the target.

    `A = argmax Σ_q corr_m(Σ_{i in S_m} <A v_q, A v_i>, y_qm)` by Adam from the identity.

    Args:
      query_QxD, train_NxD: vectors from `encoder.encode`.
      members_MxS: training rows of each retrained subset.
      target_QxM: minus the losses of the queries, nats.
      settings: of the training.

    Returns:
      `[Q, N]` float32.
    """
    sums_MxD = np.stack([train_NxD[rows].sum(axis=0) for rows in members_MxS])
    sums_MxD -= sums_MxD.mean(axis=0, keepdims=True)
    map_DxD = np.asarray(_trained(query_QxD, sums_MxD, target_QxM, settings))
    return (query_QxD @ map_DxD) @ (train_NxD @ map_DxD).T
