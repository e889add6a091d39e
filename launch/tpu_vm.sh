#!/usr/bin/env bash
# Trains on a Cloud TPU VM, on one worker or many: create, set up, run, follow, resume, delete.
# shellcheck disable=SC2016,SC2088 # In single quotes stands what the workers are to expand.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh COMMAND [--flag=value ...] [-- flags of fbjax.main ...]

  create   ask for the TPU VM (a queued resource) and wait until it is there
  setup    copy this checkout's commit to every worker, install fbjax and JAX for TPU
  run      start fbjax.main on every worker, detached, logging to ~/fbjax.log
  log      follow the log of one worker
  status   tell the state of the request, of the VM and of every worker's run
  stop     ask the run to save a checkpoint and leave
  watch    all of it: create, setup, run, again after every preemption, until the run is done
  delete   delete the VM and its request

  flag            environment  default
  --name=N        NAME                  of the VM
  --zone=Z        ZONE                  such as us-west4-a
  --project=P     PROJECT               of Google Cloud
  --type=T        TYPE                  such as v5litepod-16
  --version=V     VERSION      by type  TPU software, such as v2-alpha-tpuv5-lite
  --spot          SPOT=1                cheaper, may be preempted
  --workdir=W     WORKDIR               gs://bucket/folder, or a disk that all workers mount
  --config=C      CONFIG                such as configs/shapes.py
  --revision=R    REVISION     HEAD     the commit that setup copies
  --worker=I      WORKER       0        whose log
  --poll=S        POLL         60       seconds between two looks at a state
  --retries=K     RETRIES      5        failures that watch puts up with
  --dry-run       DRY_RUN=1             print the commands instead of running them

example: launch/tpu_vm.sh watch --name=demo --zone=us-west4-a --project=mine --type=v5litepod-16 \
           --spot --workdir=gs://mine/demo --config=configs/shapes.py -- --config.train.steps=20000
END
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$ROOT/launch/common.sh"

# What the workers execute. Whoever works in ~/fbjax holds a lock, so that nothing starts twice.
LOCK='exec 9>~/fbjax.lock
flock -n 9 || { echo "fbjax already runs on $(hostname)" >&2; exit 1; }
'
INSTALL="$LOCK"'set -e
rm -rf ~/fbjax ~/fbjax.ready
mkdir ~/fbjax
tar -xzf ~/fbjax.tar.gz -C ~/fbjax
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv -q --allow-existing --python 3.11 ~/fbjax-venv
uv pip install -q --python ~/fbjax-venv/bin/python -r ~/fbjax/requirements.txt "jax[tpu]" gcsfs
touch ~/fbjax.ready'
START='[ -f ~/fbjax.ready ] || { echo "use setup first on $(hostname)" >&2; exit 1; }
rm -f ~/fbjax.exit
setsid bash -c '
# A run that was told to leave before it was done ends with 143.
REPORT='if ! flock -n ~/fbjax.lock true; then echo state=running
elif grep -qsx 143 ~/fbjax.exit; then echo state=stopped
elif [ -s ~/fbjax.exit ]; then echo "state=exit$(cat ~/fbjax.exit)"; else echo state=idle; fi'
# A run that ends by itself at this moment cannot be told any more, and leaves its lock.
STOP='flock -n ~/fbjax.lock true || kill -TERM "$(cat ~/fbjax.pid)" || flock -w 60 ~/fbjax.lock true'

say() { echo "${DRY_RUN:+# }$*"; }

tpu() { # GROUP VERB ARGUMENT...
  call gcloud compute tpus "$@" "--zone=$ZONE" "--project=$PROJECT"
}

on_workers() { tpu tpu-vm ssh "$NAME" --quiet --worker="${2:-all}" --command="$1"; }

# The state of the request or of the VM; empty when there is none, an error when Google Cloud
# cannot be asked.
request_state() { listed queued-resources state.state; }
vm_state() { listed tpu-vm state; }
listed() {
  tpu "$1" list --format="value(name.basename(),$2)" | awk -v name="$NAME" '$1 == name {print $2}'
}

run_states() { # what the workers' runs do, each state once, on one line
  on_workers "$REPORT" | sed -n 's/.*state=//p' | sort -u | tr '\n' ' '
}

check_idle() { # of all workers, where the lock is each worker's own
  local runs
  runs=$(run_states)
  case $runs in *running*) die "fbjax already runs on $NAME; wait for it or stop it first" ;; esac
}

create() {
  need TYPE VERSION
  local state last="" options=()
  state=$(request_state)
  if [ -n "$state" ]; then say "$NAME exists already."; else
    options=("--node-id=$NAME" "--accelerator-type=$TYPE" "--runtime-version=$VERSION")
    if [ -n "$SPOT" ]; then options+=(--spot); fi
    tpu queued-resources create "$NAME" "${options[@]}"
  fi
  while [ -z "$DRY_RUN" ]; do
    state=$(request_state) || state="of unknown state"
    if [ "$state" != "$last" ]; then say "$NAME is ${state:-gone}."; fi
    case $state in
      ACTIVE) break ;;
      "" | FAILED | SUSPEND*) die "$NAME is ${state:-gone}; delete it and create it again" ;;
    esac
    last=$state
    sleep "$POLL"
  done
}

commit() {
  git -C "$ROOT" rev-parse --verify --quiet "$REVISION^{commit}" ||
    die "$ROOT has no commit $REVISION; setup copies a commit of a git checkout"
}

setup() {
  local revision archive
  revision=$(commit)
  check_idle
  archive=${TMPDIR:-/tmp}/fbjax-$revision.tar.gz
  say "Copying commit $revision; changes that are not committed stay here."
  call git -C "$ROOT" archive --format=tar.gz "--output=$archive" "$revision"
  tpu tpu-vm scp "$archive" "$NAME:fbjax.tar.gz" --quiet --worker=all
  call rm -f "$archive"
  on_workers "$INSTALL" || die "setup failed on a worker of $NAME; the lines above say why"
}

run() { # FLAG-OF-FBJAX...
  need WORKDIR CONFIG
  known_config
  case $WORKDIR in
    gs://* | /*) ;;
    *) die "WORKDIR is $WORKDIR, which would be lost with the VM; give gs://bucket/folder" ;;
  esac
  check_idle
  local word job
  job='~/fbjax-venv/bin/python -m fbjax.main'
  for word in "--config=$CONFIG" "--workdir=$WORKDIR" "$@"; do job+=" $(quote "$word")"; done
  job="cd ~/fbjax && { $job & echo \$! >~/fbjax.pid; wait \$!; }; echo \$? >~/fbjax.exit"
  on_workers "$LOCK$START$(quote "$job") >~/fbjax.log 2>&1 </dev/null &" ||
    die "the run did not start on every worker of $NAME; see the lines above"
  [ -n "$DRY_RUN" ] || say "Started on every worker of $NAME; launch/tpu_vm.sh log follows it."
}

status() {
  local request vm
  request=$(request_state)
  vm=$(vm_state)
  say "request: ${request:-none}"
  say "vm: ${vm:-none}"
  if [ "$vm" = READY ] || [ -n "$DRY_RUN" ]; then say "runs: $(run_states)"; fi
}

delete() {
  local state
  state=$(request_state)
  if [ -z "$state$DRY_RUN" ]; then say "There is no $NAME to delete." && return; fi
  tpu queued-resources delete "$NAME" --force --quiet
  while [ -n "$state" ]; do # Its name is free once it is not listed any more.
    state=$(request_state)
    if [ -n "$state" ]; then sleep "$POLL"; fi
  done
}

watch() { # FLAG-OF-FBJAX...
  need TYPE VERSION WORKDIR CONFIG
  known_config
  # Every start gets the same commit and the same flags; the steps find them in the environment.
  REVISION=$(commit)
  export NAME ZONE PROJECT TYPE VERSION SPOT WORKDIR CONFIG REVISION POLL DRY_RUN
  local request vm runs now last="" failures=0
  while :; do
    if ! request=$(request_state) || ! vm=$(vm_state); then
      say "Cannot ask for the state of $NAME; trying again."
      sleep "$POLL"
      continue
    fi
    now="request: ${request:-none}, vm: ${vm:-none}"
    if [ "$now" != "$last" ]; then say "$NAME: $now"; fi
    last=$now
    case "$request $vm" in
      " "* | SUSPEND* | FAILED* | *PREEMPTED | *TERMINATED) steps "delete create setup run" "$@" ;;
      "ACTIVE READY")
        runs=$(run_states) || runs=unreachable
        case $runs in
          unreachable) say "Cannot reach the workers of $NAME; trying again." ;;
          *running*) ;; # Also when one of them failed: the others notice and end.
          "exit0 ") say "The run is done; delete $NAME once you have what you need." && return ;;
          *exit[1-9]*)
            on_workers 'tail -n 20 ~/fbjax.log' || true
            failed "The run ended with: $runs"
            steps "setup run" "$@"
            ;;
          *) steps "setup run" "$@" ;;
        esac
        ;;
      *) ;; # It is on its way.
    esac
    if [ -n "$DRY_RUN" ]; then return; fi
    sleep "$POLL"
  done
}

steps() { # STEPS FLAG-OF-FBJAX...
  local step all=$1
  shift
  for step in $all; do
    bash "$ROOT/launch/tpu_vm.sh" "$step" -- "$@" || { failed "The step $step failed." && return; }
  done
}

failed() {
  say "$*"
  failures=$((failures + 1))
  [ "$failures" -le "$RETRIES" ] ||
    die "$NAME failed $failures times; mend what the lines above show and watch it again"
}

main() {
  local command=${1:-help}
  case $command in
    create | setup | run | log | status | stop | watch | delete) shift ;;
    help | -h | --help) usage && exit ;;
    *) die "there is no command $command; see launch/tpu_vm.sh --help" ;;
  esac
  : "${NAME:=}" "${ZONE:=}" "${PROJECT:=}" "${TYPE:=}" "${VERSION:=}" "${SPOT:=}" "${WORKDIR:=}" \
    "${CONFIG:=}" "${REVISION:=HEAD}" "${WORKER:=0}" "${POLL:=60}" "${RETRIES:=5}" "${DRY_RUN:=}"
  read_flags "$command" "name zone project type version workdir config revision worker poll retries" \
    "spot dry-run" "$@"
  if [ -z "$VERSION" ]; then
    case $TYPE in
      v6e-*) VERSION=v2-alpha-tpuv6e ;;
      v5p-*) VERSION=v2-alpha-tpuv5 ;;
      v5litepod-*) VERSION=v2-alpha-tpuv5-lite ;;
      v[234]-*) VERSION=tpu-ubuntu2204-base ;;
    esac
  fi
  need NAME ZONE PROJECT
  [ -n "$DRY_RUN" ] || command -v gcloud >/dev/null ||
    die "gcloud is not installed; get it from https://cloud.google.com/sdk, or look with --dry-run"
  case $command in
    log) on_workers 'tail -n 100 -F ~/fbjax.log' "$WORKER" ;;
    stop) on_workers "$STOP" ;;
    *) "$command" ${REST[@]+"${REST[@]}"} ;;
  esac
}

main "$@"
