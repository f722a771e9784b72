"""The four language models the paper attributes: nanochat, pre-trained on Nemotron-ClimbMix.

Parameters are 286M, 537M, 897M and 1.38B at depth 12, 16, 20 and 24: the counts of nanochat from
16 January 2026 (e85db6b) on, when every second layer got value embeddings; before, depth 12 had
135M. The published steps (1680, 3584, 3320, 5568) are 8 tokens for each parameter of the layers
and the head, nanochat's recipe from 14 March 2026 (a825e63), so that version's features are set
here: smear, backout, gates of 12 channels, a quarter's short window. Published checkpoints are read
by `stride_jax.models.read_nanochat`, which tells the features from the weights.
"""

from ml_collections import ConfigDict

SITES = {12: "block8", 16: "block10", 20: "block12", 24: "block15"}
"""Published layer of the operators, by depth; taken to count from zero."""

NUM_TRAIN = {12: 1_690_000, 16: 3_630_000, 20: 6_830_000, 24: 11_400_000}
"""Training examples; the last is published, the others have the same tokens an example."""


def preset(depth: int) -> ConfigDict:
    """Model and method at one published depth: width 64 L, heads of 128, context 2,048."""
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
            "stride": {
                "design": {"num_subsets": 1000, "degree": 10, "seed": 0},
                "basis": {"rank": 16},
                "taps": (SITES[depth],),
                "sites": (SITES[depth],),
                "measure": {"form": "first_order"},
                "prior": 0.0,
            },
            "mesh": {"data": -1, "subset": 0, "parameters": "sharded"},
            "keep": {"seconds": 600.0},
            # 500 queries; the published corpora have 2.7, 5.8, 10.9 and 18.2 billion tokens, the
            # largest of them 11.4 million examples.
            "plan": {
                "num_train": NUM_TRAIN[depth],
                "num_queries": 500,
                "input_shape": (2048,),
                "num_classes": 32_768,
            },
        }
    )
