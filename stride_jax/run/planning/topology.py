"""Devices of a TPU topology that is not there: programs compile for them, and none runs.

Needs the extra `tpu`, whose libtpu holds the compiler; no TPU is asked for.
"""

import importlib.util
import os
import re
from typing import Any

from jax.experimental import topologies

from stride_jax.run.planning.chips import CHIPS

_NAME = re.compile(r"(?P<chip>v\d+[a-z]?):\d+x\d+(x\d+)?")
_EXAMPLES = "v5e:16x16, v6e:16x16, v5p:4x4x4 or v4:4x4x4"
# Asks no server which TPU this machine is, and lets another process compile at the same time.
_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# Else libtpu prints what it did not find out about a TPU of this machine's own.
_QUIET = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def chip_in(topology: str) -> str:
    """The chip that a topology is made of.

    Raises:
      ValueError: another form of name, or a chip whose peaks are not known.

    >>> chip_in("v5e:16x16")
    'v5e'
    """
    match = _NAME.fullmatch(topology)
    if match is None or CHIPS.get(match["chip"]) is None:
        raise ValueError(f"topology={topology!r}: give a chip and its grid, such as {_EXAMPLES}")
    return match["chip"]


def devices_of(topology: str) -> list[Any]:
    """The chips of a topology, for a mesh to compile for.

    Call it before anything else asks JAX for devices.

    Raises:
      ValueError: a name that is not known, or no libtpu.
    """
    chip = chip_in(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology={topology!r} needs the compiler for TPUs, which is not installed: "
            'pip install "stride-jax[tpu]"'
        )
    for name, value in (_ALONE | _QUIET).items():
        os.environ.setdefault(name, value)
    # One device per chip, as JAX has it on the chips themselves.
    details = {"chip_config_name": "megacore"} if chip == "v4" else {}
    try:
        described = topologies.get_topology_desc(topology, "tpu", **details)
    except Exception as error:  # what libtpu does not know, it says in errors of many kinds
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"topology={topology!r}: libtpu refuses it ({first}); give one such as {_EXAMPLES}"
        ) from error
    return list(described.devices)
