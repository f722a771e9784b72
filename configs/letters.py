"""STRIDE on drawn capital letters, against 200 models: a board kept out of all choices.

MLP 16-64-32-26, N = 5,000 of 20,000, 400 queries, K = 1000. Nothing of the method had been chosen
on it before its first run; `make boards-data` fetches the table.

    python -m benchmarks.leaderboard --config=configs/letters.py \\
        --workdir=runs/leaderboard/letters

LDS .328 [.313, .345] in the first run, the first of 18 methods, Gauss-Newton even (.324); at the
damping that spam led to .353 [.337, .370], ahead by .028 [.021, .036].
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {
                "name": "letters",
                "train": "train",
                "calibration": "calibration",
                "query": "query",
            },
            "model": {"kind": "mlp", "widths": (64, 32)},
            "train": {
                "epochs": 30,
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
