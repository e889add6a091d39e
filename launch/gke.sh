#!/usr/bin/env bash
# Trains on slices of Cloud TPU in GKE: fills in launch/gke_jobset.yaml and applies it.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/gke.sh COMMAND [--flag=value ...] [-- flags of fbjax.main ...]

  start    apply the JobSet; one that runs already is left alone, one that has ended is begun again
  status   tell the state of the JobSet and of its pods
  log      follow the log of the first host
  stop     delete the JobSet: the run saves a checkpoint within 30 s, and start goes on from there

  flag              environment  default
  --name=N          NAME                  of the JobSet
  --image=I         IMAGE                 that launch/Dockerfile has made, see there
  --accelerator=A   ACCELERATOR           such as tpu-v5-lite-podslice (v5e), tpu-v5p-slice, tpu-v6e-slice
  --topology=T      TOPOLOGY              of a slice, such as 4x4 or 2x2x4
  --chips=C         CHIPS        4        of a host
  --slices=S        SLICES       1
  --workdir=W       WORKDIR               gs://bucket/folder
  --config=C        CONFIG                such as configs/shapes.py
  --account=K       ACCOUNT      default  the Kubernetes service account that may use the bucket
  --retries=R       RETRIES      5        restarts for what fails by itself; preemptions are not counted
  --spot            SPOT=1                nodes are Spot VMs
  --dry-run         DRY_RUN=1             print what would be done instead of doing it

It needs kubectl, pointed at a cluster with JobSet and a node pool of that accelerator and topology.

example: launch/gke.sh start --name=demo --image=us-docker.pkg.dev/mine/fbjax/fbjax \
           --accelerator=tpu-v5-lite-podslice --topology=4x4 --workdir=gs://mine/demo \
           --config=configs/shapes.py
END
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$ROOT/launch/common.sh"

yaml() { # a word as a string of YAML in double quotes
  local word=${1//\\/\\\\}
  printf '"%s"' "${word//\"/\\\"}"
}

manifest() { # FLAG-OF-FBJAX...
  local text chips=1 side name word
  need NAME IMAGE ACCELERATOR TOPOLOGY WORKDIR CONFIG
  known_config
  like NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "at most 40 of a-z, 0-9 and -, from a letter to a letter or digit"
  like ACCELERATOR 'tpu[a-z0-9-]+' "such as tpu-v5-lite-podslice"
  like TOPOLOGY '[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}' "such as 4x4 or 2x2x4"
  whole CHIPS SLICES RETRIES
  case $WORKDIR in
    gs://?*) ;;
    *) die "WORKDIR is $WORKDIR, which would be lost with the pods; give gs://bucket/folder" ;;
  esac
  for side in ${TOPOLOGY//x/ }; do chips=$((chips * side)); done
  if [ "$chips" -lt "$CHIPS" ]; then CHIPS=$chips; fi
  [ $((chips % CHIPS)) = 0 ] || die "TOPOLOGY $TOPOLOGY is $chips chips, which hosts of $CHIPS do not make"
  # shellcheck disable=SC2034 # The loop below reads it by its name.
  HOSTS=$((chips / CHIPS))
  if [ -n "$SPOT" ]; then SPOT=true; else SPOT=false; fi
  ARGS=$(yaml "--config=$CONFIG")
  for word in "--workdir=$WORKDIR" "$@"; do ARGS+=", $(yaml "$word")"; done
  text=$(grep -v '^ *#' "$ROOT/launch/gke_jobset.yaml")
  for name in NAME IMAGE ACCELERATOR TOPOLOGY CHIPS SLICES HOSTS SPOT ACCOUNT RETRIES ARGS; do
    text=${text//"\${$name}"/"${!name}"}
  done
  echo "$text"
}

start() { # FLAG-OF-FBJAX...
  local text state=""
  text=$(manifest "$@")
  if [ -n "$DRY_RUN" ]; then
    echo "kubectl apply -f - <<'END'"
    echo "$text"
    echo END
    return
  fi
  state=$(kubectl get jobset "$NAME" --ignore-not-found \
    "--output=jsonpath={.metadata.name} {.status.terminalState}") ||
    die "the cluster cannot be asked for the JobSet $NAME; the line above says why"
  case $state in
    "" | " ") ;;
    *Completed | *Failed) kubectl delete jobset "$NAME" ;; # It would not begin again by itself.
    *) echo "$NAME runs already." && return ;;
  esac
  kubectl apply --filename=- <<<"$text"
}

main() {
  local command=${1:-help}
  case $command in
    start | status | log | stop) shift ;;
    help | -h | --help) usage && exit ;;
    *) die "there is no command $command; see launch/gke.sh --help" ;;
  esac
  : "${NAME:=}" "${IMAGE:=}" "${ACCELERATOR:=}" "${TOPOLOGY:=}" "${CHIPS:=4}" "${SLICES:=1}" "${WORKDIR:=}" \
    "${CONFIG:=}" "${ACCOUNT:=default}" "${RETRIES:=5}" "${SPOT:=}" "${DRY_RUN:=}"
  read_flags "$command" "name image accelerator topology chips slices workdir config account retries" \
    "spot dry-run" "$@"
  need NAME
  [ -n "$DRY_RUN" ] || command -v kubectl >/dev/null ||
    die "kubectl is not installed; get it from https://kubernetes.io/docs/tasks/tools, or look with --dry-run"
  case $command in
    start) start ${REST[@]+"${REST[@]}"} ;;
    status)
      call kubectl get jobset "$NAME"
      call kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$NAME"
      ;;
    log)
      call kubectl logs --follow --tail=100 \
        "--selector=jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
      ;;
    stop) call kubectl delete jobset "$NAME" --ignore-not-found ;;
  esac
}

main "$@"
