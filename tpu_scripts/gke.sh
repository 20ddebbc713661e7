#!/usr/bin/env bash
# The same on Google Kubernetes Engine, through xpk (pip install xpk).
#
#   tpu_scripts/gke.sh cluster CLUSTER --accelerator TYPE --zone ZONE [options]
#   tpu_scripts/gke.sh launch CLUSTER JOB --accelerator TYPE --zone ZONE \
#     --image IMAGE [--slices N] [--env NAME=VALUE] -- COMMAND
#   tpu_scripts/gke.sh list CLUSTER --zone ZONE
#   tpu_scripts/gke.sh stop CLUSTER JOB --zone ZONE
#   tpu_scripts/gke.sh delete CLUSTER --zone ZONE
#
#   --spot | --reservation NAME | --flex    of cluster; default: on demand
#   --slices N             default 1
#   --image IMAGE          made with tpu_scripts/Dockerfile
#   --project, --dry-run   as for create.sh
#
# A job is started again after exit statuses 42 and 127 to 255, 143 among them,
# up to 50 times.
#
# Example:
#   tpu_scripts/gke.sh cluster mine --accelerator v5litepod-16 \
#     --zone us-west4-a --spot
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "accelerator= slices= spot reservation= flex image= env=" "$@"
place
size=("--tpu-type=${OPT[accelerator]:-}" "--num-slices=${OPT[slices]:-1}")
action=${ARGS[0]:-}
case $action in
  cluster | list | delete) need ACTION CLUSTER ;;
  launch | stop) need ACTION CLUSTER JOB ;;
  *) fail "expected cluster, launch, list, stop or delete, found '$action'." \
    "See --help." ;;
esac
CLUSTER=${ARGS[1]} JOB=${ARGS[2]:-none}
check_name "$CLUSTER"
check_name "$JOB"
[[ $action != cluster && $action != launch || ${OPT[accelerator]:-} ]] ||
  fail "expected --accelerator, found none. For example: v5litepod-16."
case $action in
  cluster)
    how=(${OPT[spot]:+--spot} ${OPT[flex]:+--flex} \
      ${OPT[reservation]:+"--reservation=${OPT[reservation]}"})
    ((${#how[@]} < 2)) || fail "expected one of --spot, --reservation and" \
      "--flex, found ${how[*]}. Pass one."
    run xpk cluster create "--cluster=$CLUSTER" "${size[@]}" \
      "${how[@]:---on-demand}" "${PLACE[@]}" ;;
  launch)
    [[ ${OPT[image]:-} ]] ||
      fail "expected --image, found none. Make one: tpu_scripts/Dockerfile."
    ((${#COMMAND[@]})) ||
      fail "expected a command after --, found none. See --help."
    printf -v line ' %q' "${COMMAND[@]}"
    # exec: xpk hands SIGTERM to the shell around the command. xpk's default, no
    # restarts, would end the job at its first preemption.
    run xpk workload create "--cluster=$CLUSTER" "--workload=$JOB" \
      "${size[@]}" "--docker-image=${OPT[image]}" --max-restarts=50 \
      --termination-grace-period-seconds=120 "${ENVIRONMENT[@]/#/--env=}" \
      "--command=exec$line" "${PLACE[@]}" ;;
  list) run xpk workload list "--cluster=$CLUSTER" "${PLACE[@]}" ;;
  stop) run xpk workload delete "--cluster=$CLUSTER" "--workload=$JOB" \
    "${PLACE[@]}" ;;
  delete) run xpk cluster delete "--cluster=$CLUSTER" "${PLACE[@]}" ;;
esac
