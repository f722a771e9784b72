#!/usr/bin/env bash
set -euo pipefail
# The folder holds the job alone; the code is there already.
folder=${1:?the folder that is sent}
cat >"$folder"/mnist5k-runlocal.sh <<'END OF JOB'
#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
if [ "${1:-}" = run ]; then
  trap : TERM # all of the group get it: this shell waits while the process saves
  code=0
  # /mnt/runs/x
  [ "$code" -ne 0 ] || .venv/bin/python -m stride_jax run \
    --config=configs/mnist5k.py:runlocal \
    --config.index.sites="('logit',)" \
    --workdir=/mnt/runs/x \
    --multihost || code=$?
  rm -f logs/mnist5k-runlocal.pid
  echo "ended with code $code"
  exit "$code"
fi
if [ -e logs/mnist5k-runlocal.pid ] && kill -0 "$(cat logs/mnist5k-runlocal.pid)" 2>/dev/null; then
  echo "$(hostname): mnist5k-runlocal is at work here: stop it first" >&2
  exit 1
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
gcloud compute tpus tpu-vm scp "$folder"/mnist5k-runlocal.sh my-tpu:stride_jax/ \
  --zone=us-central2-b \
  --project=my-project \
  --worker=all
gcloud compute tpus tpu-vm ssh my-tpu \
  --zone=us-central2-b \
  --project=my-project \
  --worker=all \
  --command='cd stride_jax && bash mnist5k-runlocal.sh'

# watch: gcloud compute tpus tpu-vm ssh my-tpu --zone=us-central2-b --project=my-project --worker=0 --command='tail -n 100 -F stride_jax/logs/mnist5k-runlocal.log'
# stop: gcloud compute tpus tpu-vm ssh my-tpu --zone=us-central2-b --project=my-project --worker=all --command='kill -TERM -- "-$(cat stride_jax/logs/mnist5k-runlocal.pid)"'
