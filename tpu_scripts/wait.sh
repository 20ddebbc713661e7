#!/usr/bin/env bash
# Waits until a slice is there; with --job, until its job has ended.
#
#   tpu_scripts/wait.sh NAME --zone ZONE [options] [-- COMMAND]
#
#   --job                  wait for the end of the job that runs on it
#   --every SECONDS        between two looks, default 30
#   --zone, --project, --dry-run    as for create.sh
#   COMMAND                creates the slice again after it was preempted
#
# States: WAITING_FOR_RESOURCES -> PROVISIONING -> ACTIVE, or FAILED; a slice
# that was taken away is SUSPENDED. Exit status: 0 it is there (the job is
# done), 143 preempted and no COMMAND, 1 failed, gone, or not to be read.
#
# Example:
#   tpu_scripts/wait.sh rte --zone us-west4-a
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "job every=" "$@"
need NAME
NAME=${ARGS[0]}
check_name "$NAME"
place
PLACE+=(${OPT[dry-run]:+--dry-run})

# The service's state on the first worker; see job.sh.
job() {
  queue ssh "$NAME" --quiet --node=0 --worker=0 "--command=test -e \
/opt/peft_jax/setup_failed && echo setup-failed || \
systemctl show --property=SubState --value peft-jax"
  if [[ ${OPT[dry-run]:-} ]]; then show "${QUEUE[@]}" && echo exited; else
    { "${QUEUE[@]}" 2>/dev/null || echo unreachable; } | tail -n 1 |
      sed 's/^dead$/not started/'
  fi
}
give_up() { echo "error: $*" >&2 && exit "${status:-1}"; }

last='' unknown=0
while true; do
  now=$(state "$NAME" ACTIVE)
  if [[ $now == ACTIVE && ${OPT[job]:-} ]]; then now="ACTIVE, job $(job)"; fi
  [[ $now == "$last" || ${OPT[dry-run]:-} ]] || echo "$(date +%H:%M:%S) $NAME: $now" >&2
  if [[ $now == UNKNOWN ]]; then ((unknown += 1)); else unknown=0; fi
  last=$now
  case $now in
    ACTIVE | 'ACTIVE, job exited') exit 0 ;;
    'ACTIVE, job failed' | 'ACTIVE, job setup-failed')
      give_up "the ${now#ACTIVE, } on $NAME, which still costs money. Read" \
        "tpu_scripts/logs.sh $NAME; then launch again, or delete it." ;;
    SUSPENDED | PREEMPTED)
      ((${#COMMAND[@]})) || status=143 give_up "$NAME was preempted. Delete" \
        "and create it again, or let launch.sh do so."
      "$HERE/delete.sh" "$NAME" "${PLACE[@]}"
      "${COMMAND[@]}" ;;
    FAILED) give_up "$NAME could not be created, often for want of quota or" \
      "of that type in the zone. The reason: gcloud compute tpus" \
      "queued-resources describe $NAME ${PLACE[*]}. Then delete it." ;;
    NOT_FOUND) give_up "expected a queued resource $NAME, found none in" \
      "${OPT[zone]}. Create it, or look elsewhere: --zone, --project." ;;
    UNKNOWN) ((unknown < 10)) || give_up "expected a state of $NAME, found" \
      "none in 10 looks. A job there goes on; gcloud's answer is above." ;;
  esac
  sleep "${OPT[every]:-30}"
done
