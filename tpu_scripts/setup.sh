#!/usr/bin/env bash
# Installs this project, T5X and a Python of their own on all workers of a slice
# that is there; starts COMMAND on all of them where there is one.
#
#   tpu_scripts/setup.sh NAME --zone ZONE --source WHEEL [options] [-- COMMAND]
#
#   --source S             gs://BUCKET/peft_jax-VERSION.whl, or
#                          git+https://HOST/REPOSITORY@COMMIT; default:
#                          $PEFT_JAX_SOURCE
#   --files gs://B/FOLDER  copied into the folder in which COMMAND runs
#   --env NAME=VALUE       for COMMAND; may be given several times
#   --zone, --project, --dry-run    as for create.sh
#
# A second time it installs only what has changed. launch.sh needs no setup
# before: there the workers do the same by themselves.
#
# Example:
#   tpu_scripts/setup.sh rte --zone us-west4-a \
#     --source gs://mine/peft_jax-0.1.0-py3-none-any.whl
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "source= files= env=" "$@"
need NAME
NAME=${ARGS[0]}
check_name "$NAME"
startup "$NAME"
queue scp "$STARTUP" "$NAME:/tmp/peft_jax_startup.sh" --quiet \
  --node=all --worker=all
run "${QUEUE[@]}"
queue ssh "$NAME" --quiet --node=all --worker=all \
  "--command=sudo bash /tmp/peft_jax_startup.sh"
run "${QUEUE[@]}"
