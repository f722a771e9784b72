"""STRIDE on the King James Bible with a small GPT, against 256 retrained language models.

KJV, byte-level BPE of 1,024 tokens, 4,096 sequences of 64 tokens, 200 held-out ones as queries;
GPT of depth 3 and width 64; K = 1000, d = 10, read in groups of four tokens.

    python -m experiments.run --config=configs/bible_gpt.py --workdir=runs/bible_gpt
    python -m experiments.ask --workdir=runs/bible_gpt --prompt="And God said,"
    python -m benchmarks.leaderboard --config=configs/bible_gpt.py \\
        --workdir=runs/leaderboard/bible_gpt

LDS .561 on the 64 subsets that score, EK-FAC .512; a perfect predictor has .80. On two cores fit
and queries take 20 s and the eight models that tell the unit 3 minutes; the bank's 256 models took
104 minutes of one core.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = ConfigDict(
        {
            "text": {"name": "bible", "translations": ("kjv",), "max_train": 4096},
            "model": {
                "kind": "gpt",
                "gpt": {
                    "depth": 3,
                    "width": 64,
                    "num_heads": 4,
                    "num_kv_heads": 4,
                    "smear": False,
                    "backout": False,
                    "value_embeddings": True,
                    # One learning rate serves all parameters here: nanochat's 0.8 learns slowly.
                    "embedding_std": 0.05,
                },
            },
            "train": {
                "epochs": 4,
                "batch_size": 16,
                "optimizer": "adamw",
                "learning_rate": 8e-3,
                "warmup": 0.05,
                "seed": 0,
            },
            "index": {
                "design": common.design(1000, "hash"),
                "kept": 0,
                "precision": "float32",
                "basis": {"rank": 192},
                "taps": ("embedding", "previous", "final"),
                "output_rank": 256,
                "closed_form": {
                    "fisher": "kronecker",
                    "damping": 0.01,
                    "output_damping": 0.5,
                    "doubt": 0.0,
                },
            },
            "read": {
                "measure": {"form": "first_order", "group": 4},
                "prior": 0.0,
                "lasso": {"lambda_fraction": 0.2, "relative_gap": 1e-2},
                "exact": common.exact(500, rounds=1, shrink=0.99),
            },
            "unit": {"groups": 8, "models_at_once": 1},
            "bank": common.bank(models_at_once=1),
            "execution": common.execution(),
            "leaderboard": {
                "num_subsets": 128,
                "repeats": 2,
                "methods": _methods("stride-k300"),
                "uncalibrated": False,
                "ensemble": 0,
                "removal_queries": 0,
                "removal_top_k": (50,),
            },
        }
    )
    if not common.is_small(arg):
        return config
    return common.changed(
        config,
        **{
            "text.max_train": 200,
            "text.num_query": 8,
            "text.num_calibration": 8,
            "text.books": ("Genesis",),
            "text.vocab_size": 300,
            "text.length": 16,
            "model.gpt.depth": 1,
            "model.gpt.width": 16,
            "model.gpt.num_heads": 2,
            "model.gpt.num_kv_heads": 2,
            "model.gpt.sequence_len": 16,
            "train.epochs": 1,
            "index.design.num_subsets": 48,
            "index.basis.rank": 16,
            "read.exact.budget": 50,
            "leaderboard.num_subsets": 4,
            "leaderboard.methods": _methods("stride-k14"),
            "leaderboard.repeats": 1,
            "unit.groups": 4,
            "unit.models_at_once": 4,
            "bank.num_subsets": 4,
            "bank.models_at_once": 4,
        },
    )


def _methods(fewer: str) -> tuple[str, ...]:
    """All but joint training, which holds every token's logits at once, Gauss-Newton and ASTRA,
    an iteration of which passes over the corpus for every query; the temperature is .97."""
    return (
        "stride", "stride-whole", "stride-full", "stride-residual", fewer, "stride-direct",
        "random", "feature-cosine", "rds+", "grad-dot", "grad-cos", "trak", "logra", "ekfac",
        "ev-shampoo", "trackstar", "less", "tf-idf", "bm25", "dsir",
    )  # fmt: skip
