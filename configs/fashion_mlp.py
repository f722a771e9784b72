"""STRIDE on 10,000 images of FashionMNIST with the quickstart's MLP, against 200 models.

MLP 784-128-64-10, N = 10,000 of 60,000, 400 queries of the test set, K = 1000, d = 10. The paper's
FashionMNIST MLP (arXiv 2606.05165: STRIDE .231, TRAK .198) in kind; `make data` fetches the images.

    python -m benchmarks.leaderboard --config=configs/fashion_mlp.py \\
        --workdir=runs/leaderboard/fashion_mlp
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {
                "name": "fashion_mnist50k",
                "train": "train[:10000]",
                "calibration": "calibration[:500]",
                "query": "query[:400]",
            },
            "model": {"kind": "mlp", "widths": (128, 64)},
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
