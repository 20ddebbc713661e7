#!/usr/bin/env bash
# Runs a training command on a slice, from nothing to the end: creates the
# slice, whose workers install and start by themselves, watches it, and creates
# it again when it was preempted. The same command again goes on watching.
#
#   tpu_scripts/launch.sh NAME --accelerator TYPE --zone ZONE --source WHEEL \
#     [options] -- COMMAND
#
#   --accelerator, --spot, --reserved, --flex-start, --slices, --wait-at-most,
#   --runtime, --service-account, --zone, --project, --dry-run
#                          as for create.sh
#   --source, --files, --env
#                          as for setup.sh
#   --every SECONDS        between two looks, default 30
#   --detach               do not watch: nobody creates it again then
#
# COMMAND runs on every worker and must resume by itself, as `peft-jax train`
# and `python -m t5x.train` do. Exit status 143 means "start me again".
#
# Example:
#   tpu_scripts/launch.sh rte --accelerator v5litepod-16 --zone us-west4-a \
#     --spot --source gs://mine/peft_jax-0.1.0-py3-none-any.whl -- \
#     peft-jax train --require tpu --model t5_1_1_base --adapter ia3 \
#     --task superglue_rte --backbone t5x:gs://mine/t5_base/checkpoint_1000000 \
#     --model_dir gs://mine/runs/rte
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "accelerator= spot reserved flex-start= slices= wait-at-most= runtime= \
service-account= source= files= env= every= detach" "$@"
need NAME
NAME=${ARGS[0]}
check_name "$NAME"
((${#COMMAND[@]})) || fail "expected a command after --, found none. For" \
  "example: launch.sh $NAME ... -- peft-jax train --model_dir gs://B/runs/$NAME"
place
PLACE+=(${OPT[dry-run]:+--dry-run})
startup "$NAME"
create=("$HERE/create.sh" "$NAME" "${PLACE[@]}" "--startup=$STARTUP")
for name in accelerator flex-start slices wait-at-most runtime \
  service-account; do
  [[ -z ${OPT[$name]:-} ]] || create+=("--$name=${OPT[$name]}")
done
create+=(${OPT[spot]:+--spot} ${OPT[reserved]:+--reserved})

now=$(state "$NAME" NOT_FOUND)
case $now in
  NOT_FOUND) "${create[@]}" ;;
  ACTIVE)
    "$HERE/setup.sh" "$NAME" "${PLACE[@]}" \
      ${OPT[source]:+"--source=${OPT[source]}"} \
      ${OPT[files]:+"--files=${OPT[files]}"} \
      "${ENVIRONMENT[@]/#/--env=}" -- "${COMMAND[@]}" ;;
esac
[[ -z ${OPT[detach]:-} ]] || exit 0
"$HERE/wait.sh" "$NAME" "${PLACE[@]}" --job "--every=${OPT[every]:-30}" \
  -- "${create[@]}"
[[ ${OPT[dry-run]:-} ]] || echo "$NAME: done. It costs money" \
  "until: tpu_scripts/delete.sh $NAME ${PLACE[*]}" >&2
