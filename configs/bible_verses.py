"""Verse retrieval: train on King James and American Standard, ask with the World English Bible.

    python -m benchmarks.retrieval --config=configs/bible_verses.py \\
        --workdir=runs/retrieval/verses

STRIDE: recall@10 .989, MRR .993 on 500 verses; gradient and overlap methods are as good.
"""

from ml_collections import ConfigDict

from configs import bible_gpt, common


def get_config(arg: str = "") -> ConfigDict:
    """The run; `runlocal` makes it one of seconds."""
    config = bible_gpt.get_config(arg)
    small = common.is_small(arg)
    del config["text"]
    config.verses = {
        "translations": ("kjv", "asv"),
        "query_translation": "web",
        "max_train": 200 if small else 4096,
        "num_calibration": 8 if small else 200,
        "num_query": 12 if small else 600,
        "vocab_size": 300 if small else 1024,
        "length": 16 if small else 64,
        "books": ("Genesis",) if small else (),
    }
    config.retrieval = {
        "tuning_queries": 4 if small else 100,
        "methods": (
            "stride", "stride-direct", "random", "feature-cosine", "grad-dot", "grad-cos",
            "trak", "logra", "ekfac", "tf-idf", "bm25",
        ),
    }  # fmt: skip
    return config
