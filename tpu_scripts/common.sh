# shellcheck shell=bash
# Sourced by the scripts beside it: facts, arguments, and how commands are run.
# Flags of gcloud and xpk: docs/tpu.md says where each was looked up.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON_VERSION=3.12

# Not on PyPI; the commits are those of `peft-jax doctor` (a test compares).
# shellcheck disable=SC2034  # written into the startup script
T5X_SOURCES=(
  git+https://github.com/google-research/t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16
  git+https://github.com/google/airio@69897df7d9a427b947a9f7bb4164c7782b43e601
  git+https://github.com/google-research/jestimator@326824a477feef6d92e6f44175000907a72899ca
)

fail() { echo "error: $*" >&2 && exit 2; }
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "expected bash 4.4 or later, found $BASH_VERSION. Use Cloud Shell, or" \
    "on a Mac: brew install bash."

# Fills OPT, ENVIRONMENT, COMMAND (what follows --) and ARGS (all else).
# $1 lists the script's own options; those that end in = take a value.
declare -A OPT=()
ARGS=() COMMAND=() ENVIRONMENT=()
parse() {
  local known=" $1 zone= project= dry-run" name value
  shift
  while (($#)); do
    name=${1#--} && name=${name%%=*}
    if [[ $1 == --help || $1 == -h ]]; then
      awk 'NR > 1 { if (!sub(/^# ?/, "")) exit; print }' "$0" && exit 0
    elif [[ $1 == -- ]]; then
      shift && COMMAND=("$@") && break
    elif [[ $1 != -* ]]; then
      ARGS+=("$1")
    elif [[ "$known " == *" $name= "* ]]; then
      if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2:-} && shift; fi
      [[ -n $value && $value != --* ]] ||
        fail "expected a value after --$name, found '$value'. See --help."
      OPT[$name]=$value
      [[ $name != env ]] || add_environment "$value"
    elif [[ "$known " == *" $name "* && $1 != *=* ]]; then
      OPT[$name]=1
    else
      fail "expected one of the options${known// / --}, found $1. See --help."
    fi
    shift
  done
  OPT[zone]=${OPT[zone]:-${ZONE:-}} OPT[project]=${OPT[project]:-${PROJECT:-}}
}

add_environment() {
  [[ $1 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
    fail "expected --env NAME=VALUE, found '$1'. Write the value behind a =."
  ENVIRONMENT+=("$1")
}

# need NAME...: says so where there are not that many positional arguments.
need() {
  ((${#ARGS[@]} == $#)) ||
    fail "expected the arguments $*, found '${ARGS[*]}'. See --help."
}

check_name() {
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "expected a name of lower-case letters, digits and hyphens, at most" \
      "40, that starts with a letter, found '$1'. Choose another, e.g. my-run."
}

# Runs a command after showing it; --dry-run only shows it.
exec 3>&1
run() {
  if [[ ${OPT[dry-run]:-} ]]; then show "$@" && return; fi
  show "+" "$@" 3>&2 && "$@"
}
show() { # so that it can be pasted into a shell
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }" >&3
}

# Sets PLACE to the options that say where.
place() {
  [[ ${OPT[zone]} ]] || fail "expected a zone, found none. Pass --zone, for" \
    "example --zone us-west4-a, or export ZONE."
  PLACE=("--zone=${OPT[zone]}" ${OPT[project]:+"--project=${OPT[project]}"})
}

# queue VERB ARGS...: sets QUEUE to a command on queued resources.
queue() {
  place
  QUEUE=(gcloud compute tpus queued-resources "$@" "${PLACE[@]}")
}

# state NAME ASSUMED: prints the state of a queued resource, or NOT_FOUND.
state() {
  local answer
  queue describe "$1" '--format=value(state.state)'
  if [[ ${OPT[dry-run]:-} ]]; then
    show "${QUEUE[@]}" && echo "$2"
  elif answer=$("${QUEUE[@]}" 2>&1); then
    tail -n 1 <<<"$answer"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NOT_FOUND
  else
    echo "$answer" >&2 && echo UNKNOWN
  fi
}

# job_state NAME ASSUMED: the service's state on the first worker; see job.sh.
job_state() {
  queue ssh "$1" --quiet --node=0 --worker=0 "--command=test -e \
/opt/peft_jax/setup_failed && echo setup-failed || \
systemctl show --property=SubState --value peft-jax"
  if [[ ${OPT[dry-run]:-} ]]; then show "${QUEUE[@]}" && echo "$2" && return; fi
  { "${QUEUE[@]}" 2>/dev/null || echo unreachable; } | tail -n 1 |
    sed 's/^dead$/not started/'
}

# startup NAME: writes what every worker runs, and sets STARTUP to the file.
startup() {
  local SOURCE=${OPT[source]:-${PEFT_JAX_SOURCE:-}} FILES=${OPT[files]:-} PINS
  [[ $SOURCE =~ ^(gs://.+\.whl|git\+https://.+@[0-9a-f]{40})$ ]] ||
    fail "expected --source gs://BUCKET/peft_jax-VERSION.whl or" \
      "git+https://HOST/REPOSITORY@COMMIT with all 40 digits, found" \
      "'$SOURCE'. A wheel: make wheel && gcloud storage cp dist/*.whl gs://B/"
  [[ -z $FILES || $FILES == gs://* ]] ||
    fail "expected --files gs://BUCKET/FOLDER, found '$FILES'. Copy it there" \
      "first: gcloud storage cp --recursive $FILES gs://BUCKET/FOLDER"
  PINS=$(<"$HERE/../requirements/constraints-py${PYTHON_VERSION/./}.txt")
  STARTUP=${XDG_CACHE_HOME:-$HOME/.cache}/peft_jax/$1-startup.sh
  mkdir -p "${STARTUP%/*}"
  (umask 077 && {
    echo '#!/usr/bin/env bash'
    declare -p SOURCE FILES PINS PYTHON_VERSION T5X_SOURCES COMMAND ENVIRONMENT
    tail -n +2 "$HERE/install.sh"
    tail -n +2 "$HERE/job.sh"
  } >"$STARTUP")
}
