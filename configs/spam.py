"""STRIDE on mails that are spam or not, against 200 models: a board kept out of all choices.

MLP 57-64-32-2, N = 3,800, 400 queries, K = 1000. Nothing of the method had been chosen on it before
its first run; `make boards-data` fetches the table.

    python -m benchmarks.leaderboard --config=configs/spam.py \\
        --workdir=runs/leaderboard/spam

LDS .383 [.368, .399] in the first run, the seventh of 18 methods (Gauss-Newton .509); with what was
learnt from it .519 [.501, .538], ahead of Gauss-Newton by .011 [.005, .017] (`docs/lab.md`).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {
                "name": "spam",
                "train": "train",
                "calibration": "calibration",
                "query": "query",
            },
            "model": {"kind": "mlp", "widths": (64, 32)},
            "train": {
                "epochs": 20,
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "seed": 0,
            },
            **common.classifier_contest(1000, models_at_once=20, top_k=50),
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config, **common.SMALL_BOARD, **{"data.train": "train[:200]", "data.query": "query[:30]"}
    )
