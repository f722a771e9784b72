"""STRIDE on Parkinson's speech with a small MLP, against 200 retrained models.

MLP 751-64-32-2, N = 176, 50 queries, K = 200, d = 10. The paper's Parkinsons MLP (arXiv 2606.05165:
STRIDE .536, LoGRA .405): here .676 [.637, .712], Gauss–Newton .630;
`make boards-data` fetches the table.

    python -m benchmarks.leaderboard --config=configs/parkinsons.py \\
        --workdir=runs/leaderboard/parkinsons
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {
                "name": "parkinsons",
                "train": "train",
                "calibration": "calibration",
                "query": "query",
            },
            "model": {"kind": "mlp", "widths": (64, 32)},
            "train": {
                "epochs": 30,
                "batch_size": 16,
                "optimizer": "sgd",
                "learning_rate": 0.02,
                "seed": 0,
            },
            **common.classifier_contest(200, models_at_once=50, top_k=10),
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config, **common.SMALL_BOARD, **{"data.train": "train[:100]", "data.query": "query[:20]"}
    )
