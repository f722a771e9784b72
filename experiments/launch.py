"""`python -m experiments.launch`: the same as `stride-jax launch`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["launch", *sys.argv[1:]]))
