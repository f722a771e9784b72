#!/usr/bin/env bash
# What --target=local does; it also kills what does not stop in time.
set -euo pipefail
mkdir -p runs/x/logs
PORT=$(python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
pids=() result=0
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap stop TERM INT HUP
for i in 0 1; do
  log=runs/x/logs/process-$i.log
  python -m stride_jax run \
    --config=configs/mnist5k.py:runlocal \
    --config.index.sites="('logit',)" \
    --workdir=runs/x \
    --multihost \
    --coordinator="127.0.0.1:$PORT" \
    --num_processes=2 \
    --process_id="$i" \
    > >(if [ "$i" -eq 0 ]; then tee -a "$log"; else cat >>"$log"; fi) 2>&1 &
  pids+=("$!")
done
# The first that ends badly stops the others, and gives its code. By their ids: `wait -n` loses a
# process that ends before it is called.
while [ "${#pids[@]}" -gt 0 ]; do
  alive=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
      continue
    fi
    code=0
    wait "$pid" || code=$?
    if [ "$code" -ne 0 ] && [ "$result" -eq 0 ]; then
      result=$code
      stop
    fi
  done
  pids=("${alive[@]}")
  sleep 0.2
done
exit "$result"

# watch: tail -F runs/x/logs/process-*.log
# stop: Ctrl-C
