#!/usr/bin/env bash
# Deletes a queued resource with its slices, whatever runs there; what is on
# their disks is lost, what is in a bucket stays.
#
#   tpu_scripts/delete.sh NAME --zone ZONE [--project P] [--dry-run]
#
# Example:
#   tpu_scripts/delete.sh rte --zone us-west4-a
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "" "$@"
need NAME
NAME=${ARGS[0]}
check_name "$NAME"
queue delete "$NAME" --force --quiet
run "${QUEUE[@]}"
