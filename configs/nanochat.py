"""The four language models the paper attributes: nanochat, pre-trained on Nemotron-ClimbMix.

    python -m experiments.plan --config=configs/nanochat.py:d24 --topology=v5e:16x16
    stride-jax prepare --source=climbmix/ --out=tokens --vocab_size=32768 --length=2048
    python -m experiments.run --config=configs/nanochat.py:d24 --workdir=runs/d24

The run pre-trains its model on the shards in `tokens`. A published checkpoint instead, with the
tokenizer it was trained with, taken as it is:

    stride-jax prepare --source=climbmix/ --out=tokens --tokenizer=d24/tokenizer.json --length=2048
    python -m experiments.run --config=configs/nanochat.py:d24 --workdir=runs/d24 \\
        --config.model.init_from=d24 --config.train.epochs=0

| argument | parameters | published LDS | hours | GiB |
|---|---|---|---|---|
| d12 | 286M | .158 | 2.55 | 2.33 |
| d16 | 537M | .179 | 4.73 | 3.18 |
| d20 | 897M | .160 | 7.27 | 5.27 |
| d24 | 1.38B | .167 | 9.93 | 8.41 |

(arXiv 2606.05165 and its project page; the hardware is not named.) Planned here for d24 on eight
H100: 9.0 GiB per device, 5.2 hours at 40 % of the peak.

The counts of parameters are those of nanochat from 16 January 2026 (e85db6b) on, when every second
layer got value embeddings; before, depth 12 had 135M. The published steps (1680, 3584, 3320, 5568)
are 8 tokens for each parameter of the layers and the head, nanochat's recipe from 14 March 2026
(a825e63), so that version's features are set here: smear, backout, gates of 12 channels, a
quarter's short window. Published checkpoints are read by `stride_jax.models.read_nanochat`, which
tells the features from the weights.
"""

from ml_collections import ConfigDict

from configs import common

SITES = {12: "block8", 16: "block10", 20: "block12", 24: "block15"}
"""Published layer of the operators, by depth; taken to count from zero."""

NUM_TRAIN = {12: 1_690_000, 16: 3_630_000, 20: 6_830_000, 24: 11_400_000}
"""Training examples; the last is published, the others have the same tokens per example."""


def get_config(arg: str = "d24") -> ConfigDict:
    """Model and method at one published depth: width 64 L, heads of 128, context 2,048."""
    if arg not in (presets := {f"d{depth}": depth for depth in SITES}):
        raise ValueError(f"unknown config argument {arg!r}: use one of {', '.join(presets)}")
    depth = presets[arg]
    heads = depth // 2
    return ConfigDict(
        {
            "model": {
                "kind": "gpt",
                "gpt": {
                    "depth": depth,
                    "width": 64 * depth,
                    "num_heads": heads,
                    "num_kv_heads": heads,
                    "sequence_len": 2048,
                    "window_pattern": "SSSL",
                    "short_window": 512,
                    "dtype": "bfloat16",
                },
            },
            "shards": {"folder": "tokens", "num_query": 500, "num_calibration": 200},
            # An epoch has 5,566 steps at depth 24 (published 5,568); the rate was not tried. Eight
            # parts are a sequence at a time on each of 256 devices; eight devices take 256 parts.
            "train": {
                "epochs": 1,
                "batch_size": 2048,
                "accumulation": 8,
                "optimizer": "muon",
                "learning_rate": 0.02,
                "warmup": 0.01,
            },
            "num_checkpoints": 1,
            "index": {
                "design": common.design(1000, "hash"),
                "kept": None,
                "precision": "float32",
                "basis": {"rank": 16},
                "taps": (SITES[depth],),
                "sites": (SITES[depth],),
            },
            "read": {"measure": {"form": "first_order"}, "prior": 0.0},
            # Half of the memory holds d24's parameters in bfloat16 on each device.
            "execution": common.execution("sharded", seconds=600.0) | {"memory": 6 * 2**30},
            # 500 queries; the published corpora have 2.7, 5.8, 10.9 and 18.2 billion tokens.
            "plan": {
                "num_train": NUM_TRAIN[depth],
                "num_queries": 500,
                "input_shape": (2048,),
                "num_classes": 32_768,
            },
        }
    )
