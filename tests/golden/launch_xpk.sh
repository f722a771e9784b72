#!/usr/bin/env bash
xpk workload create \
  --workload=mnist5k-runlocal \
  --cluster=my-cluster \
  --tpu-type=v5litepod-16 \
  --num-slices=2 \
  --docker-image=gcr.io/my-project/stride:1 \
  --storage=my-bucket \
  --max-restarts=20 \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=120 \
  --command='exec python -m stride_jax run --config=configs/mnist5k.py:runlocal --config.index.sites="('"'"'logit'"'"',)" --workdir=/mnt/runs/x --multihost'
