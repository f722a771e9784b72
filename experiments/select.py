"""`python -m experiments.select`: the same as `stride-jax select`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["select", *sys.argv[1:]]))
