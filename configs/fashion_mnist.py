"""STRIDE on FashionMNIST with an MLP: ten times the quickstart's training set.

MLP 784-128-64-10, N = 50,000, 64 queries of the test set, K = 1000, d = 10; no retrained models,
so no evaluation. `make data` fetches the images once, from Debian's package dataset-fashion-mnist.

    make data
    python -m experiments.run --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
    python -m experiments.run --config=configs/fashion_mnist.py:runlocal --workdir=runs/local

60 of the 64 queries are predicted right. On two cores the images are prepared in 8 s, once, and
read in 19 s; the whole run takes 73 s, compilation included.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds, once the 70,000 images are prepared."""
    config = ConfigDict(
        {
            "data": {
                "name": "fashion_mnist50k",
                "train": "train",
                "calibration": "calibration",
                "query": "query[:64]",
            },
            "model": {"kind": "mlp", "widths": (128, 64)},
            "train": {
                "epochs": 20,
                "batch_size": 64,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "weight_decay": 0.0,
                "seed": 0,
            },
            "index": {
                "taps": (),
                "sites": ("logit",),
                "fit": "closed_form",
                **common.classifier_index(1000),
            },
            "read": {"measure": {"scale": 0.01}, **common.classifier_read()},
            "bank": None,
            "execution": common.execution(),
            "top_k": 100,
            "plan": {
                "num_train": 50_000,
                "num_queries": 64,
                "input_shape": (28, 28, 1),
                "num_classes": 10,
            },
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **{
            "data.train": "train[:600]",
            "data.calibration": "calibration[:100]",
            "data.query": "query[:40]",
            "train.epochs": 4,
            "index.design.num_subsets": 200,
            "index.basis.rank": 64,
            "index.joint.steps": 20,
        },
    )
