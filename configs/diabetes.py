"""STRIDE on scikit-learn's diabetes table with a small MLP, against 200 retrained models.

TODO
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
