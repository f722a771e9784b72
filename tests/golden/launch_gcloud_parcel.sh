#!/usr/bin/env bash
set -euo pipefail
# The folder is 1a2b3c4d5-0f1e2d3c: stride_jax-0.1.0-0g1a2b3c4d5-py3-none-any.whl, constraints.txt, configs/common.py, configs/mnist5k.py, install.sh.
folder=${1:?the folder that is sent}
cat >"$folder"/mnist5k-runlocal.sh <<'END OF JOB'
#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
if [ "${1:-}" = run ]; then
  trap : TERM # all of the group get it: this shell waits while the process saves
  code=0
  # gs://my-bucket/runs/x
  [ "$code" -ne 0 ] || env/bin/python -m stride_jax run \
    --config=configs/mnist5k.py:runlocal \
    --config.index.sites="('logit',)" \
    --config.shards.folder=/tmp/gcs/my-text/tokens \
    --workdir=/tmp/gcs/my-bucket/runs/x \
    --multihost || code=$?
  rm -f logs/mnist5k-runlocal.pid
  echo "ended with code $code"
  exit "$code"
fi
if [ -e logs/mnist5k-runlocal.pid ] && kill -0 "$(cat logs/mnist5k-runlocal.pid)" 2>/dev/null; then
  echo "$(hostname): mnist5k-runlocal is at work here: stop it first" >&2
  exit 1
fi
bash install.sh
if ! mountpoint -q /tmp/gcs/my-bucket; then
  mkdir -p /tmp/gcs/my-bucket
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    my-bucket /tmp/gcs/my-bucket
fi
if ! mountpoint -q /tmp/gcs/my-text; then
  mkdir -p /tmp/gcs/my-text
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    my-text /tmp/gcs/my-text
fi
mkdir -p logs
nohup setsid bash mnist5k-runlocal.sh run >>logs/mnist5k-runlocal.log 2>&1 </dev/null &
echo "$!" >logs/mnist5k-runlocal.pid
echo "$(hostname): mnist5k-runlocal has started"
END OF JOB
gcloud compute tpus tpu-vm ssh my-tpu \
  --zone=us-central2-b \
  --project=my-project \
  --worker=all \
  --command='mkdir -p stride_jax'
gcloud compute tpus tpu-vm scp "$folder" my-tpu:stride_jax/ \
  --zone=us-central2-b \
  --project=my-project \
  --worker=all \
  --recurse
gcloud compute tpus tpu-vm ssh my-tpu \
  --zone=us-central2-b \
  --project=my-project \
  --worker=all \
  --command='cd stride_jax/1a2b3c4d5-0f1e2d3c && bash mnist5k-runlocal.sh'

# watch: gcloud compute tpus tpu-vm ssh my-tpu --zone=us-central2-b --project=my-project --worker=0 --command='tail -n 100 -F stride_jax/1a2b3c4d5-0f1e2d3c/logs/mnist5k-runlocal.log'
# stop: gcloud compute tpus tpu-vm ssh my-tpu --zone=us-central2-b --project=my-project --worker=all --command='kill -TERM -- "-$(cat stride_jax/1a2b3c4d5-0f1e2d3c/logs/mnist5k-runlocal.pid)"'
