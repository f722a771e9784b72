#!/usr/bin/env bash
xpk workload create \
  --workload=mnist5k-runlocal \
  --cluster=my-cluster \
  --tpu-type=v5litepod-16 \
  --num-slices=2 \
  --storage=my-bucket \
  --max-restarts=20 \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=120 \
  --docker-image=gcr.io/my-project/stride:1 \
  --command='exec python -m stride_jax run --config=configs/mnist5k.py:runlocal --config.index.sites="('"'"'logit'"'"',)" --workdir=/mnt/runs/x --multihost'

# watch: kubectl logs --follow --tail=100 --selector jobset.sigs.k8s.io/jobset-name=mnist5k-runlocal,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
# stop: xpk workload delete --workload=mnist5k-runlocal --cluster=my-cluster
