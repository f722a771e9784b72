"""`python -m experiments.ask`: the same as `stride-jax ask`."""

from absl import app

from stride_jax.cli.ask import main

if __name__ == "__main__":
    app.run(main)
