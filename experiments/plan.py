"""`python -m experiments.plan`: the same as `stride-jax plan`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
