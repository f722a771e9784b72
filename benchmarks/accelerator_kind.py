"""The accelerator of this machine, and the JAX that drives it; run by any Python, with nothing
installed.

    python benchmarks/accelerator_kind.py    # jax[cuda13], jax[cuda12], jax[tpu], or nothing
"""

import pathlib
import re
import shutil
import subprocess


def jax_extra() -> str:
    """The requirement for this machine's accelerator; for compiling alone where there is none."""
    if shutil.which("nvidia-smi"):
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"CUDA (?:UMD )?Version: (\d+)", told)
        if version:
            return "jax[cuda13]" if int(version.group(1)) >= 13 else "jax[cuda12]"
    return "jax[tpu]"


def has_tpu() -> bool:
    """Whether a TPU's device files are there."""
    return any(pathlib.Path("/dev").glob("accel[0-9]*")) or any(
        pathlib.Path("/dev/vfio").glob("[0-9]*")
    )


if __name__ == "__main__":
    print(jax_extra())
