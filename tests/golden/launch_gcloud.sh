#!/usr/bin/env bash
gcloud compute tpus tpu-vm ssh my-tpu \
  --zone=us-central2-b \
  --project=my-project \
  --worker=all \
  --command='cd stride_jax && .venv/bin/python -m stride_jax run --config=configs/mnist5k.py:runlocal --config.index.sites="('"'"'logit'"'"',)" --workdir=/mnt/runs/x --multihost'
