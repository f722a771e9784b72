"""`python -m experiments.run`: the same as `stride-jax run`."""

from absl import app

from stride_jax.cli.run import main

if __name__ == "__main__":
    app.run(main)
