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
give_up() { echo "error: $*" >&2 && exit "${status:-1}"; }

last='' preempted='' failures=0
while true; do
  now=$(state "$NAME" ACTIVE)
  if [[ $now == ACTIVE && ${OPT[job]:-} ]]; then now="ACTIVE, job $(job_state "$NAME" exited)"; fi
  [[ $now == "$last" || ${OPT[dry-run]:-} ]] ||
    echo "$(date +%H:%M:%S) $NAME: $now" >&2
  last=$now
  case $now in
    ACTIVE | 'ACTIVE, job exited') exit 0 ;;
    'ACTIVE, job failed' | 'ACTIVE, job setup-failed')
      give_up "the ${now#ACTIVE, } on $NAME, which still costs money. Read" \
        "tpu_scripts/logs.sh $NAME; then launch again, or delete it." ;;
    FAILED) give_up "$NAME could not be created, often for want of quota or" \
      "of that type in the zone. The reason: gcloud compute tpus" \
      "queued-resources describe $NAME ${PLACE[*]}. Then delete it." ;;
    SUSPENDED | PREEMPTED)
      ((${#COMMAND[@]})) || status=143 give_up "$NAME was preempted. Delete" \
        "and create it again, or let launch.sh do so."
      if "$HERE/delete.sh" "$NAME" "${PLACE[@]}"; then preempted=1; else
        ((failures += 1))
      fi ;;
    NOT_FOUND)
      [[ $preempted ]] || give_up "expected a queued resource $NAME, found" \
        "none in ${OPT[zone]}. Create it, or look elsewhere: --zone, --project."
      if "${COMMAND[@]}"; then preempted=''; else ((failures += 1)); fi ;;
    UNKNOWN) ((failures += 1)) ;;
    *) failures=0 ;;
  esac
  ((failures < 10)) || give_up "expected an answer about $NAME, found 10" \
    "failures. A job there goes on; what gcloud says is above."
  sleep "${OPT[every]:-30}"
done
