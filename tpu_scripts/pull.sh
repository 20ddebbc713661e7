#!/usr/bin/env bash
# Copies a run from a bucket, or from the first worker, to this machine.
#
#   tpu_scripts/pull.sh gs://BUCKET/runs/RUN FOLDER [--dry-run]
#   tpu_scripts/pull.sh NAME:PATH FOLDER --zone ZONE [--project P] [--dry-run]
#
# FOLDER must be new. A run holds the adapter's checkpoints, never the backbone.
#
# Example:
#   tpu_scripts/pull.sh gs://mine/runs/rte runs/rte
#   peft-jax export runs/rte --to rte_adapter
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "$@"
need FROM TO
FROM=${ARGS[0]%/} TO=${ARGS[1]%/}
[[ ! -e $TO || -d $TO && -z $(ls -A "$TO") ]] ||
  fail "expected a new folder, found $TO. Choose another, or move it away."
[[ $FROM =~ ^(gs://.+|[a-z][-a-z0-9]*:/?[^/]+.*)$ ]] ||
  fail "expected gs://BUCKET/runs/RUN or NAME:PATH, found '$FROM'. See --help."
case $FROM in
  gs://?*) QUEUE=(gcloud storage cp --recursive "$FROM/*" "$TO/") ;;
  *) queue scp --recurse "$FROM" "$TO" --quiet --node=0 --worker=0 ;;
esac
[[ $FROM != gs://* || ${OPT[dry-run]:-} ]] || mkdir -p "$TO"
run "${QUEUE[@]}"
[[ ${OPT[dry-run]:-} ]] ||
  echo "next: peft-jax export $TO --to ${TO##*/}_adapter" >&2
