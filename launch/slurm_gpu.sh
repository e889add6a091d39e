#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process for each GPU, on one node or many.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/slurm_gpu.sh submit [--flag=value ...] [-- flags of fbjax.main ...]

Submits a job that trains; unless one of that name waits or runs already. When its time is up or it is
preempted, the run saves and the job goes back into the queue, to go on from its checkpoint.

  flag            environment     default
  --name=N        NAME                      of the job
  --workdir=W     WORKDIR                   a folder that all nodes mount, or gs://bucket/folder
  --config=C      CONFIG                    such as configs/shapes.py
  --nodes=N       NODES           1
  --gpus=G        GPUS            8         of each node
  --cpus=C        CPUS            8         for each GPU
  --time=T        TIME            24:00:00  of the job between two turns in the queue
  --grace=S       GRACE           120       seconds before the end of its time at which a run saves
  --python=P      PYTHON          python    of an environment with requirements.txt and jax[cuda13]
  --sbatch=O      SBATCH                    more options of sbatch, such as "--partition=a --account=b"
  --dry-run       DRY_RUN=1                 print the command instead of running it

The log is NAME-JOB.log in the folder that it is submitted from. `scancel --signal=TERM JOB` saves and goes
back into the queue, `scancel JOB` saves, within the cluster's KillWait (30 s, if nobody changed it), and ends.

example: launch/slurm_gpu.sh submit --name=demo --nodes=2 --workdir=/scratch/demo --config=configs/shapes.py
END
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# In a job SLURM runs a copy of this file, from somewhere else, and `submit` has said where the checkout is.
if [ "${1:-}" = job ] && [ -n "${SLURM_JOB_ID:-}" ]; then ROOT=$2; fi
# shellcheck source=launch/common.sh
. "$ROOT/launch/common.sh"

ASKED=143 # exit status of a run that was told to leave before it was done

submit() { # FLAG-OF-FBJAX...
  local queued word more=()
  need NAME WORKDIR CONFIG PYTHON
  known_config
  whole NODES GPUS CPUS GRACE
  like TIME '[0-9]+|([0-9]+-)?[0-9]+(:[0-9]{2}){1,2}|[0-9]+-[0-9]+' "minutes, hours:minutes:seconds or days-hours"
  case $WORKDIR in
    *://?* | /*) ;;
    *) die "WORKDIR is $WORKDIR; give a full path that all nodes mount, or gs://bucket/folder" ;;
  esac
  read -ra more <<<"$SBATCH"
  if [ -z "$DRY_RUN" ]; then
    for word in sbatch squeue; do
      command -v "$word" >/dev/null ||
        die "$word is not installed; submit on a login node of a SLURM cluster, or look with --dry-run"
    done
    queued=$(squeue --me --noheader "--name=$NAME" --format=%i) ||
      die "SLURM cannot be asked for jobs; the line above says why"
    if [ -n "$queued" ]; then echo "$NAME is submitted already, as job ${queued//$'\n'/, }." && return; fi
  fi
  # The signal goes to the processes of the run, and not to the shell that waits for them below.
  call sbatch "--job-name=$NAME" "--output=$NAME-%j.log" --open-mode=append --requeue \
    "--nodes=$NODES" "--ntasks-per-node=$GPUS" "--gpus-per-node=$GPUS" "--cpus-per-task=$CPUS" \
    "--time=$TIME" "--signal=TERM@$GRACE" ${more[@]+"${more[@]}"} \
    "$ROOT/launch/slurm_gpu.sh" job "$ROOT" "$PYTHON" "--config=$CONFIG" "--workdir=$WORKDIR" "$@"
}

job() { # ROOT PYTHON FLAG-OF-FBJAX...; inside of the job, on its first node
  local status=0
  [ -n "${SLURM_JOB_ID:-}" ] || die "job is for SLURM to call; use submit"
  cd "$1"
  # srun starts Python itself: no shell is between SLURM's SIGTERM and the process that saves. A process
  # that fails does not kill the others: they notice, within a minute, and say so.
  srun --kill-on-bad-exit=0 "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}" "$2" -u -m fbjax.main "${@:3}" || status=$?
  # This shell is still here, so the job was neither cancelled nor preempted, which is SLURM's to requeue.
  if [ "$status" = "$ASKED" ]; then
    echo "Asked to stop: job $SLURM_JOB_ID goes back into the queue, to go on from its checkpoint."
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}

main() {
  local command=${1:-help}
  case $command in
    submit) shift ;;
    job) shift && job "$@" ;;
    help | -h | --help) usage && exit ;;
    *) die "there is no command $command; see launch/slurm_gpu.sh --help" ;;
  esac
  : "${NAME:=}" "${WORKDIR:=}" "${CONFIG:=}" "${NODES:=1}" "${GPUS:=8}" "${CPUS:=8}" "${TIME:=24:00:00}" \
    "${GRACE:=120}" "${PYTHON:=python}" "${SBATCH:=}" "${DRY_RUN:=}"
  read_flags submit "name workdir config nodes gpus cpus time grace python sbatch" "dry-run" "$@"
  submit ${REST[@]+"${REST[@]}"}
}

main "$@"
