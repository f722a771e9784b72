#!/usr/bin/env bash
# The environment of commit 1a2b3c4d5: made by the first that comes, the others wait.
set -euo pipefail
cd "$(dirname "$0")"
exec 9>env.lock
flock 9
if [ -e env/packages.txt ]; then exit; fi
# The versions are those of Python 3.11; uv fetches it where it lacks.
if ! python=$(command -v python3.11); then
  python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.11
  python=$(python3 -m uv python find 3.11)
fi
rm -rf env
"$python" -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
  './stride_jax-0.1.0-0g1a2b3c4d5-py3-none-any.whl[run,text]' 'jax[tpu]'
env/bin/python -m pip freeze >env/packages.part
mv env/packages.part env/packages.txt
