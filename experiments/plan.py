"""`python -m experiments.plan`: the same as `stride-jax plan`."""

from absl import app

from stride_jax.cli.plan import main

if __name__ == "__main__":
    app.run(main)
