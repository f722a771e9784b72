"""STRIDE on scikit-learn's 8x8 digits with a small ResNet-9, against 200 retrained models.

ResNet-9 of width 4, 300 queries, K = 1000, d = 10. Like the paper's CIFAR-10 ResNet-9 (STRIDE .130,
LoGRA .285; arXiv 2606.05165) in kind, not in data.

    python -m experiments.run --config=configs/digits_resnet.py --workdir=runs/digits_resnet
    python -m benchmarks.leaderboard --config=configs/digits_resnet.py \\
        --workdir=runs/leaderboard/digits_resnet

LDS .207 [.194, .220] on the board's scoring half; the models are noisy, a perfect predictor has
.26. On two cores the 200 models take 201 s; all methods with their settings took 83
minutes on one of them, beside other jobs.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {"name": "digits8x8", "train": "train", "query": "query"},
            "model": {"kind": "resnet9", "width": 4},
            "train": {
                "epochs": 12,
                "batch_size": 64,
                "optimizer": "adamw",
                "learning_rate": 0.01,
                "seed": 0,
            },
            "index": common.classifier_index(1000),
            "read": common.classifier_read(),
            "bank": common.bank(models_at_once=10),
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
