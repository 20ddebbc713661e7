#!/usr/bin/env bash
# Shows what a worker installs and what its job prints, and follows it.
#
#   tpu_scripts/logs.sh NAME --zone ZONE [options]
#
#   --worker N             default 0, whose process writes the training log
#   --slice N              of a multi-slice job, default 0
#   --lines N              of what was printed before, default 200
#   --zone, --project, --dry-run    as for create.sh
#
# Example:
#   tpu_scripts/logs.sh rte --zone us-west4-a
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "worker= slice= lines=" "$@"
need NAME
NAME=${ARGS[0]}
check_name "$NAME"
for name in worker slice lines; do
  [[ ${OPT[$name]:-0} =~ ^[0-9]+$ ]] ||
    fail "expected a number for --$name, found ${OPT[$name]}. See --help."
done
queue ssh "$NAME" --quiet \
  "--node=${OPT[slice]:-0}" "--worker=${OPT[worker]:-0}" \
  "--command=sudo journalctl --unit=google-startup-scripts --unit=peft-jax \
--output=cat --lines=${OPT[lines]:-200} --follow"
run "${QUEUE[@]}"
