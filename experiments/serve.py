"""`python -m experiments.serve`: the same as `stride-jax serve`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
