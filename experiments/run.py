"""`python -m experiments.run`: the same as `stride-jax run`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
