#!/usr/bin/env bash
set -euo pipefail
# The folder is 1a2b3c4d5-0f1e2d3c: stride_jax-0.1.0-0g1a2b3c4d5-py3-none-any.whl, constraints.txt, configs/common.py, configs/mnist5k.py, install.sh.
folder=${1:?the folder that is sent}
cat >"$folder"/mnist5k-runlocal.sh <<'END OF JOB'
#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
mountpoint -q /tmp/gcs/my-bucket || {
  echo "gs://my-bucket is not at /tmp/gcs/my-bucket: xpk storage attach it there" >&2
  exit 2
}
bash install.sh
exec env/bin/python -m stride_jax run \
  --config=configs/mnist5k.py:runlocal \
  --config.index.sites="('logit',)" \
  --workdir=/tmp/gcs/my-bucket/runs/x \
  --multihost
END OF JOB
xpk workload create \
  --workload=mnist5k-runlocal \
  --cluster=my-cluster \
  --tpu-type=v5litepod-16 \
  --num-slices=2 \
  --storage=my-bucket \
  --max-restarts=20 \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=120 \
  --base-docker-image=python:3.11 \
  --command='exec bash mnist5k-runlocal.sh' \
  --script-dir="$folder"

# watch: kubectl logs --follow --tail=100 --selector jobset.sigs.k8s.io/jobset-name=mnist5k-runlocal,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
# stop: xpk workload delete --workload=mnist5k-runlocal --cluster=my-cluster
