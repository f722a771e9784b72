#!/usr/bin/env bash
# What --target=local does; it also kills what does not stop in time when told to.
set -euo pipefail
mkdir -p runs/x/logs
PORT=$(python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
pids=() told="" result=0
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap 'told=yes; stop' TERM INT HUP
for i in 0 1; do
  log=runs/x/logs/process-$i.log
  python -m experiments.run \
    --config=configs/mnist5k.py:runlocal \
    --config.stride.sites="('logit',)" \
    --workdir=runs/x \
    --multihost \
    --coordinator="127.0.0.1:$PORT" \
    --num_processes=2 \
    --process_id="$i" \
    > >(if [ "$i" -eq 0 ]; then tee -a "$log"; else cat >>"$log"; fi) 2>&1 &
  pids+=("$!")
done
# The first that ends badly stops the others, and gives its code.
while [ -n "$(jobs -p)" ]; do
  code=0
  wait -n || code=$?
  if [ -n "$told" ]; then
    told=""  # a signal broke the wait: no process has ended
  elif [ "$code" -ne 0 ] && [ "$result" -eq 0 ]; then
    result=$code
    stop
  fi
done
exit "$result"
