"""Blocks that configs share. Values are written out, so that a later default changes no record."""

from typing import Any

from ml_collections import ConfigDict

SMALL_CONTEST = {
    "leaderboard.num_subsets": 8,
    "leaderboard.repeats": 1,
    "leaderboard.ensemble": 2,
    "leaderboard.removal_queries": 2,
    "leaderboard.removal_top_k": (20,),
}
"""The contest of a classifier's `runlocal`: every method runs, none can be told from another."""


def is_small(arg: str) -> bool:
    """Whether a config's argument is `runlocal`: seconds, and figures too coarse to compare."""
    if arg not in ("", "runlocal"):
        raise ValueError(f"unknown config argument {arg!r}: use 'runlocal' or nothing")
    return arg == "runlocal"


def changed(config: ConfigDict, **changes: Any) -> ConfigDict:
    """The config, settings of these dotted names changed in place."""
    config.update_from_flattened_dict(changes)
    return config


def design(num_subsets: int, kind: str) -> dict[str, Any]:
    """K subsets; by hash ten of them per example, as published."""
    return {"num_subsets": num_subsets, "degree": 10, "seed": 0, "kind": kind}


def classifier_index(num_subsets: int) -> dict[str, Any]:
    """The index of a classifier: closed form, and joint training for who sets `fit='joint'`."""
    return {
        "design": design(num_subsets, "auto"),
        "kept": None,
        "precision": "float32",
        "basis": {"rank": 256},
        "closed_form": {"damping": None, "doubt": 0.005},
        "joint": {"steps": 60, "learning_rate": 1e-3, "stability": 10.0, "linearity": 0.0},
    }


def classifier_read() -> dict[str, Any]:
    """How a classifier's index is read."""
    return {
        "prior": 0.25,
        "lasso": {"lambda_fraction": 0.02, "relative_gap": 1e-3},
        "exact": exact(None),
    }


def exact(budget: int | None, rounds: int = 3, shrink: float = 0.0) -> dict[str, Any]:
    """How many examples are scored exactly for a query, and how far scores are shrunk."""
    return {
        "budget": budget,
        "rounds": rounds,
        "control": 64,
        "shrink": shrink,
        "sources": (),
    }


def execution(parameters: str = "replicated", seconds: float = 300.0) -> dict[str, Any]:
    """All devices; checkpoints every so many seconds."""
    return {
        "mesh": {"data": -1, "subset": 0, "parameters": parameters},
        "keep": {"seconds": seconds},
        "memory": 2**30,
        "batch_size": 2048,
    }


def bank(models_at_once: int) -> dict[str, Any]:
    """A hundred random halves of the training set, two models each."""
    return {"num_subsets": 100, "alpha": 0.5, "num_seeds": 2, "models_at_once": models_at_once}


def classifier_leaderboard(removal_queries: int, removal_top_k: tuple[int, ...]) -> dict[str, Any]:
    """The contest of a classifier, ensembles of five and removal included."""
    return {
        "num_subsets": 200,
        "repeats": 5,
        "ensemble": 5,
        "removal_queries": removal_queries,
        "removal_top_k": removal_top_k,
    }


def classifier_contest(num_subsets: int, models_at_once: int, top_k: int) -> dict[str, Any]:
    """Blocks of a board on classes, at the defaults: nothing is chosen on its data.

    Args:
      num_subsets: K.
      models_at_once: of the bank.
      top_k: smaller number of examples removed; five times as many, too.
    """
    return {
        "index": classifier_index(num_subsets),
        "read": classifier_read(),
        "bank": bank(models_at_once),
        "execution": execution(),
        "leaderboard": {
            **classifier_leaderboard(20, (top_k, 5 * top_k)),
            "uncalibrated": False,
            "ensemble": 0,
        },
    }


SMALL_BOARD = {
    **SMALL_CONTEST,
    "leaderboard.ensemble": 0,
    "train.epochs": 2,
    "index.design.num_subsets": 100,
    "index.basis.rank": 16,
    "index.joint.steps": 10,
    "bank.num_subsets": 4,
    "bank.models_at_once": 4,
}
"""The `runlocal` of such a board."""
