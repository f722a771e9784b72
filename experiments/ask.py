"""`python -m experiments.ask`: the same as `stride-jax ask`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ask", *sys.argv[1:]]))
