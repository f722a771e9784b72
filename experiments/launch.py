"""`python -m experiments.launch`: the same as `stride-jax launch`."""

from absl import app

from stride_jax.cli.launch import main

if __name__ == "__main__":
    app.run(main)
