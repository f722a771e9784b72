"""`python -m experiments.audit`: the same as `stride-jax audit`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
