"""The order of training examples on the host, one epoch at a time.

Letter of its own: s steps.
"""

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.models.train import TrainSettings, num_batches


class Order:
    """Rows of each step's batch, as `train.order_batches` has them on a device.

    A pure function of the key and the number of the step, so a training that was stopped is resumed
    from that number: no state of a reader, such as grain's, is kept beside it. Two epochs are held,
    4 bytes per example and epoch.

    Args:
      members_S: rows to train on.
      key: key of the order.
      settings: epochs and size of a batch.

    >>> order = Order(np.arange(5), jax.random.key(0), TrainSettings(epochs=4, batch_size=2))
    >>> order.num_steps, sorted(order.rows(0, 5).ravel().tolist())
    (10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    """

    def __init__(self, members_S: np.ndarray, key: jax.Array, settings: TrainSettings) -> None:
        self.members_S = np.asarray(members_S)
        self.num_steps, self.batch = num_batches(len(self.members_S), settings)
        self._keys = jax.random.split(key, settings.epochs)
        self._epochs: dict[int, np.ndarray] = {}

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Rows of the batches of steps `first … stop − 1`, `[s, B]`."""
        begin, end, size = first * self.batch, stop * self.batch, len(self.members_S)
        parts = [
            self._epoch(e)[max(begin - e * size, 0) : end - e * size]
            for e in range(begin // size, -(-end // size))
        ]
        return np.concatenate(parts).reshape(-1, self.batch)

    def _epoch(self, e: int) -> np.ndarray:
        if e not in self._epochs:
            self._epochs = {n: own for n, own in self._epochs.items() if n == e - 1}
            order_S = jax.random.permutation(self._keys[e], jnp.arange(len(self.members_S)))
            self._epochs[e] = self.members_S[np.asarray(order_S)]
        return self._epochs[e]
