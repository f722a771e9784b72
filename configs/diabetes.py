"""STRIDE on scikit-learn's diabetes table with a small MLP, against 200 retrained models.

MLP 10-64-32-1 of squared error, targets standardised, N = 300, 100 queries, K = 300, d = 10.

    python -m experiments.run --config=configs/diabetes.py --workdir=runs/diabetes
    python -m benchmarks.objectives regression --workdir=runs/objectives --only=MLP

LDS .558 [.511, .600] on the run's 100 subsets of two models, where a perfect predictor has .83 and
gradient dot .329; R² .358 on the queries. On two cores fit and queries take 3 s, most of it
compilation, the 200 models 3 s.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {"name": "diabetes", "train": "train", "query": "query"},
            "model": {"kind": "mlp", "widths": (64, 32)},
            "train": {
                "epochs": 40,
                "batch_size": 30,
                "optimizer": "sgd",
                "learning_rate": 0.02,
                "weight_decay": 0.01,
                "seed": 0,
                "objective": "squared_error",
            },
            "index": common.classifier_index(300),
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
