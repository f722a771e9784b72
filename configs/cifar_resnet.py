"""STRIDE on 2,000 images of CIFAR-10 with a small ResNet-9, against 400 retrained models.

ResNet-9 of width 4, N = 2,000 of 9,000, 300 queries, K = 1000, d = 10. The paper's CIFAR-10
ResNet-9 (arXiv 2606.05165: STRIDE .130, LoGRA .285) in kind; `make boards-data` fetches the images.
Left out for want of time: removal, which retrains hundreds of models of 24 s, joint training, and
Gauss-Newton and ASTRA, an iteration of which passes over all images for every query.

    python -m benchmarks.leaderboard --config=configs/cifar_resnet.py \\
        --workdir=runs/leaderboard/cifar_resnet
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "data": {
                "name": "cifar10_test",
                "train": "train[:2000]",
                "calibration": "calibration[:200]",
                "query": "query[:300]",
            },
            "model": {"kind": "resnet9", "width": 4},
            "train": {
                "epochs": 12,
                "batch_size": 64,
                "optimizer": "adamw",
                "learning_rate": 0.01,
                "seed": 0,
            },
            **common.classifier_contest(1000, models_at_once=10, top_k=20),
        }
    )
    common.changed(config, **{"leaderboard.removal_queries": 0, "leaderboard.methods": _METHODS})
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **common.SMALL_BOARD,
        **{
            "data.train": "train[:200]",
            "data.query": "query[:30]",
            "leaderboard.methods": (),
        },
    )


_METHODS = (
    "stride", "stride-k300", "stride-direct", "grad-dot", "grad-cos", "tracin", "representer",
    "trak", "logra", "less", "trackstar", "ekfac", "ev-shampoo", "source", "random",
    "feature-cosine", "pas", "knn-shapley",
)  # fmt: skip
