#!/usr/bin/env bash
# Runs on every worker, as root: makes /opt/peft_jax/venv with this project and
# T5X. setup.sh and launch.sh send it with SOURCE, PINS, PYTHON_VERSION and
# T5X_SOURCES in front; it is not started by hand.
set -euo pipefail
ROOT=${ROOT:-/opt/peft_jax}
export HOME=${HOME:-/root} PATH=$PATH:/snap/bin # gcloud may be a snap
mkdir -p "$ROOT/work"
exec 9>"$ROOT/lock"
flock 9 # the boot and setup.sh may both be at it
rm -f "$ROOT/setup_failed"
trap '[[ $? == 0 ]] || touch "$ROOT/setup_failed"' EXIT
again() { # of many workers one often meets a server that is busy
  for pause in 10 30; do if "$@"; then return; else sleep "$pause"; fi; done
  "$@"
}

wanted=$(sha256sum <<<"$SOURCE $PYTHON_VERSION $PINS ${T5X_SOURCES[*]}")
if [[ $(cat "$ROOT/installed" 2>/dev/null) != "$wanted" ]]; then
  rm -rf "$ROOT/installed" "$ROOT/venv"
  # The image's Python is too old for jax. --target also works where the system
  # refuses other packages.
  again python3 -m pip install --quiet --upgrade --target "$ROOT/uv" uv==0.13.8
  again "$ROOT/uv/bin/uv" venv --seed --python "$PYTHON_VERSION" "$ROOT/venv"
  if [[ $SOURCE == gs://* ]]; then
    again gcloud storage cp "$SOURCE" "$ROOT/"
    package="peft_jax[t5x,tpu] @ file://$ROOT/${SOURCE##*/}"
  else
    package="peft_jax[t5x,tpu] @ $SOURCE"
  fi
  printf '%s\n' "$PINS" >"$ROOT/constraints.txt"
  again "$ROOT/venv/bin/pip" install --quiet \
    --constraint "$ROOT/constraints.txt" "$package"
  # T5X's own requirements follow the moving heads of six repositories.
  again "$ROOT/venv/bin/pip" install --quiet --no-deps "${T5X_SOURCES[@]}"
  echo "$wanted" >"$ROOT/installed"
fi
# So that --gin_file=gin_configs/... means the same as in a clone.
site=$("$ROOT/venv/bin/python" -c \
  'import sysconfig; print(sysconfig.get_path("purelib"))')
ln -sfn "$site/peft_jax/gin_configs" "$ROOT/work/gin_configs"
echo "peft_jax: installed in $ROOT/venv"
