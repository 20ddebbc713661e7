#!/usr/bin/env bash
# Asks for a Cloud TPU slice, or several, as a queued resource.
#
#   tpu_scripts/create.sh NAME --accelerator TYPE --zone ZONE [options]
#
#   --accelerator TYPE     v4-8, v5litepod-16, v5p-8, v6e-8, ...
#   --spot                 cheaper; may be taken away at any time
#   --reserved             from your reservation
#   --flex-start 4h        for at most so long (preview, gcloud alpha)
#   --slices N             N slices of this type (multi-slice)
#   --wait-at-most 24h     give up when there is none by then
#   --runtime VERSION      refused if it is not the one of the accelerator
#   --startup FILE         what every worker runs as root at every boot
#   --service-account A    as whom the workers act
#   --zone, --project      default: $ZONE; $PROJECT, or gcloud's own
#   --dry-run              print the commands, run none
#
# Without one of --spot, --reserved and --flex-start: on demand.
#
# Example:
#   tpu_scripts/create.sh rte --accelerator v5litepod-16 --zone us-west4-a
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "accelerator= spot reserved flex-start= slices= wait-at-most= runtime= \
startup= service-account=" "$@"
need NAME
NAME=${ARGS[0]}
check_name "$NAME"

type=${OPT[accelerator]:-}
chips=${type##*-}
case $type in
  v4-*) runtime=tpu-ubuntu2204-base sizes='multiples of 8' ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite sizes='1 4 8 16 32 64 128 256' ;;
  v5p-*) runtime=v2-alpha-tpuv5 sizes='multiples of 8' ;;
  v6e-*) runtime=v2-alpha-tpuv6e sizes='1 4 8 16 32 64 128 256' ;;
  v5e-*) fail "expected gcloud's name for v5e, v5litepod-$chips, found $type." \
    "Pass --accelerator v5litepod-$chips." ;;
  *) fail "expected --accelerator v4-8, v5litepod-16, v5p-8, v6e-8 or another" \
    "size of these, found '$type'. For TPU7x use GKE: tpu_scripts/gke.sh." ;;
esac
[[ " $sizes " == *" $chips "* || $sizes == mult* && $chips =~ ^[1-9][0-9]*$ &&
  $((chips % 8)) == 0 ]] ||
  fail "expected a size of ${type%-*} ($sizes), found $chips. Pass one of them."
[[ ${OPT[runtime]:-$runtime} == "$runtime" ]] ||
  fail "expected runtime $runtime for $type, found ${OPT[runtime]}. Leave" \
    "--runtime out: it follows from the accelerator."
how=(${OPT[spot]:+--spot} ${OPT[reserved]:+--reserved} \
  ${OPT[flex-start]:+--flex-start})
((${#how[@]} < 2)) || fail "expected at most one of --spot, --reserved and" \
  "--flex-start, found ${how[*]}. Pass one, or none for on demand."
[[ ${OPT[slices]:-1} =~ ^[1-9][0-9]*$ ]] ||
  fail "expected --slices 1 or more, found ${OPT[slices]}. Pass a number."

nodes=("--node-id=$NAME")
((${OPT[slices]:-1} == 1)) ||
  nodes=("--node-count=${OPT[slices]}" "--node-prefix=$NAME")
queue create "$NAME" "${nodes[@]}" "--accelerator-type=$type" \
  "--runtime-version=$runtime" \
  ${OPT[spot]:+--spot} ${OPT[reserved]:+--reserved} \
  ${OPT[flex-start]:+--provisioning-model=flex-start} \
  ${OPT[flex-start]:+"--max-run-duration=${OPT[flex-start]}"} \
  ${OPT[wait-at-most]:+"--valid-until-duration=${OPT[wait-at-most]}"} \
  ${OPT[service-account]:+"--service-account=${OPT[service-account]}"} \
  ${OPT[startup]:+"--metadata-from-file=startup-script=${OPT[startup]}"}
[[ -z ${OPT[flex-start]:-} ]] || QUEUE=(gcloud alpha "${QUEUE[@]:1}")
run "${QUEUE[@]}"
