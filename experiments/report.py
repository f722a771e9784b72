"""`python -m experiments.report`: the same as `stride-jax report`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
