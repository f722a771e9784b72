"""STRIDE on the 8x8 digits with seven labels each, a display's segments, and a small MLP.

MLP 64-64-32-7 of sigmoid cross-entropy, N = 1,347, 300 queries, K = 1000, d = 10.

    python -m experiments.run --config=configs/digits_segments.py --workdir=runs/digits_segments
    python -m benchmarks.objectives multilabel --workdir=runs/objectives

LDS .420 [.401, .438] on 100 subsets of five models, where a perfect predictor has .85, gradient dot
.175 and TRAK .349.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {"name": "digit_segments", "train": "train", "query": "query"},
            "model": {"kind": "mlp", "widths": (64, 32)},
            "train": {
                "epochs": 30,
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "seed": 0,
                "objective": "sigmoid",
            },
            "index": common.classifier_index(1000),
            "read": common.classifier_read(),
            "bank": common.bank(models_at_once=50),
            "execution": common.execution(),
            "leaderboard": common.classifier_leaderboard(15, (20, 100)),
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **common.SMALL_CONTEST,
        **{
            "data.train": "train[:200]",
            "data.query": "query[:30]",
            "train.epochs": 2,
            "index.design.num_subsets": 100,
            "index.basis.rank": 64,
            "index.joint.steps": 10,
            "bank.num_subsets": 4,
            "bank.models_at_once": 4,
        },
    )
