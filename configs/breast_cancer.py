"""STRIDE on the Wisconsin breast cancer table with a small MLP, against 200 retrained models.

MLP 30-64-32-2, N = 427, 100 queries, K = 400, d = 10.

    python -m experiments.run --config=configs/breast_cancer.py --workdir=runs/breast_cancer
    python -m benchmarks.leaderboard --config=configs/breast_cancer.py \\
        --workdir=runs/leaderboard/breast_cancer

LDS .470 [.430, .513] on the scoring half, ahead of Gauss–Newton by .038 [.023, .050]; a perfect
predictor has .83. On two cores fit and queries take .2 s after compilation.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {"name": "breast_cancer", "train": "train", "query": "query"},
            "model": {"kind": "mlp", "widths": (64, 32)},
            "train": {
                "epochs": 30,
                "batch_size": 32,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "seed": 0,
            },
            "index": common.classifier_index(400),
            "read": common.classifier_read(),
            "bank": common.bank(models_at_once=50),
            "execution": common.execution(),
            "leaderboard": common.classifier_leaderboard(20, (10, 50)),
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **common.SMALL_CONTEST,
        **{
            "train.epochs": 3,
            "index.design.num_subsets": 100,
            "index.basis.rank": 16,
            "index.joint.steps": 10,
            "bank.num_subsets": 10,
            "bank.models_at_once": 20,
        },
    )
