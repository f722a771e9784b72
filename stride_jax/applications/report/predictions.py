"""What the model makes of the queries of a report."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from stride_jax.examples import Examples
from stride_jax.run.outputs import outputs
from stride_jax.run.pipeline import Run


def predictions(run: Run, queries: Examples) -> list[dict[str, Any]]:
    """For each query what was right, what the model said and at what loss, nats.

    Of a classifier `label`, `guess` and the probabilities of both; of numbers `target` and `said`;
    of text the loss of each token that counts (null for others), and their sum.

    Args:
      run: with its base model.
      queries: of its kind.
    """
    made: list[dict[str, Any]] = []
    classes = run.model.objective.classes
    for some, logits, loss in outputs(run, queries):
        labels = queries.labels[some]
        for i in range(len(labels)):
            if classes and labels.ndim == 2:
                made.append(_of_tokens(logits[i], labels[i], loss[i]))
            elif classes:
                made.append(_of_class(logits[i], int(labels[i]), float(loss[i])))
            else:
                made.append(_of_numbers(logits[i], labels[i], loss[i]))
    return made


def _of_class(logits_C: np.ndarray, label: int, loss: float) -> dict[str, Any]:
    p_C = np.exp(logits_C - np.logaddexp.reduce(logits_C))
    guess = int(p_C.argmax())
    return {
        "label": label,
        "guess": guess,
        "p": round(float(p_C[label]), 4),
        "p_guess": round(float(p_C[guess]), 4),
        "loss": round(loss, 4),
        "right": guess == label,
    }


def _of_tokens(logits_TxC: np.ndarray, label_T: np.ndarray, loss_T: np.ndarray) -> dict[str, Any]:
    counted = label_T >= 0
    right = (logits_TxC.argmax(axis=-1) == label_T)[counted]
    return {
        "losses": [round(float(v), 2) if c else None for v, c in zip(loss_T, counted, strict=True)],
        "loss": round(float(loss_T[counted].sum()), 3),
        "tokens_right": round(float(right.mean()), 3) if right.size else None,
    }


def _of_numbers(outputs_M: np.ndarray, target: Any, loss: Any) -> dict[str, Any]:
    return {
        "target": [round(float(v), 4) for v in np.ravel(target)],
        "said": [round(float(v), 4) for v in np.ravel(jnp.asarray(outputs_M))],
        "loss": round(float(np.sum(loss)), 4),
    }
