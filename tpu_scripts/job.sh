#!/usr/bin/env bash
# Runs on every worker behind install.sh, as root: starts COMMAND as the service
# peft-jax. systemd keeps the log, hands SIGTERM on when the machine goes down,
# and starts the job again when it exits with 143.
UNITS=${UNITS:-/etc/systemd/system}
if [[ $FILES ]]; then gcloud storage rsync --recursive "$FILES" "$ROOT/work"; fi
if ((${#COMMAND[@]})); then
  {
    echo '#!/usr/bin/env bash'
    # JAX falls back to the CPU without a word; with this it stops instead.
    echo 'export JAX_PLATFORMS=tpu,cpu PYTHONUNBUFFERED=1'
    echo "export PATH=$ROOT/venv/bin:\$PATH"
    if ((${#ENVIRONMENT[@]})); then printf 'export %q\n' "${ENVIRONMENT[@]}"; fi
    printf 'cd %q || exit 1\n' "$ROOT/work"
    # exec: the service's process is Python itself, so SIGTERM reaches it.
    printf 'exec' && printf ' %q' "${COMMAND[@]}" && echo
  } >"$ROOT/run.new"
  case $(systemctl show --property=SubState --value peft-jax) in
    running | auto-restart)
      cmp --quiet "$ROOT/run.new" "$ROOT/run" || {
        echo "error: expected no job on this worker, found another one:" \
          "$(tail -n 1 "$ROOT/run"). Wait for it, or stop it on all workers:" \
          "sudo systemctl stop peft-jax" >&2
        trap - EXIT # the other one is fine
        exit 1
      }
      echo "peft_jax: the job is running already" && exit 0 ;;
  esac
  mv "$ROOT/run.new" "$ROOT/run"
  chmod 700 "$ROOT/run"
  cat >"$UNITS/peft-jax.service" <<UNIT
[Unit]
Description=peft_jax job
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=$ROOT/run
Environment=HOME=/root
RemainAfterExit=yes
RestartForceExitStatus=143
RestartSec=10
KillMode=mixed
TimeoutStopSec=120
LimitMEMLOCK=infinity
LimitNOFILE=1048576
UNIT
  systemctl daemon-reload
  systemctl restart peft-jax
  echo "peft_jax: started ${COMMAND[*]}"
fi
