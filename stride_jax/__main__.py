"""`python -m stride_jax run …`: the same as `stride-jax run …`."""

import sys

from stride_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
