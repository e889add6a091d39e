"""The launchers: what dry runs print, and whole lives of a TPU VM, a JobSet and a job that are imitated here."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from fbjax import main, processes
from settings import ROOT

SCRIPT = "launch/tpu_vm.sh"
FLAGS = [
  *("--name=demo", "--zone=us-west4-a", "--project=mine", "--type=v5litepod-16", "--spot"),
  *("--workdir=gs://mine/demo", "--config=configs/webvid.py", "--poll=0"),
]
EXTRA = ["--config.train.batch_size=64", "--config.data.path=gs://mine/it's here"]
WHERE = ["--zone=us-west4-a", "--project=mine"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "demo"]
SETTINGS = {flag[2:].split("=")[0].upper() for flag in FLAGS}
SETTINGS |= {"VERSION", "REVISION", "WORKER", "RETRIES", "DRY_RUN"}

MISSING = [tool for tool in ("bash", "git", "flock", "setsid") if not shutil.which(tool)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {MISSING} here")

# Google Cloud in two files, `request` and `vm`, and two workers, each a home that stands for a
# machine. What is run on a worker is really run, by bash, in its home.
GCLOUD = r"""#!/usr/bin/env bash
set -euo pipefail
printf '%s\x1f' "$@" >>"$CLOUD/calls"; printf '\x1e' >>"$CLOUD/calls"
command="" worker=all
for arg; do case $arg in
  --command=*) command=${arg#--command=} ;;
  --worker=*) worker=${arg#--worker=} ;;
esac; done
case "$3 $4" in
  "queued-resources list")
    if [ -f "$CLOUD/away" ]; then rm "$CLOUD/away"; exit 1; fi
    printf 'demo-2\tFAILED\n'; [ ! -f "$CLOUD/request" ] || printf 'demo\t%s\n' "$(cat "$CLOUD/request")" ;;
  "tpu-vm list") [ ! -f "$CLOUD/vm" ] || printf 'demo\t%s\n' "$(cat "$CLOUD/vm")" ;;
  "queued-resources create")
    made=$(mktemp -d "$CLOUD/made.XXX"); mkdir "$made/0" "$made/1"; ln -s "$made" "$CLOUD/workers"
    echo ACTIVE >"$CLOUD/request"; echo READY >"$CLOUD/vm" ;;
  "queued-resources delete") rm -f "$CLOUD/request" "$CLOUD/vm" "$CLOUD/workers" ;;
  "tpu-vm scp") for home in "$CLOUD"/workers/*; do cp "$5" "$home/${6#demo:}"; done ;;
  "tpu-vm ssh")
    status=0
    grep -qsx READY "$CLOUD/vm" || exit 255
    for home in "$CLOUD"/workers/*; do
      if [ "$worker" = all ] || [ "$worker" = "${home##*/}" ]; then
        HOME=$(realpath "$home") bash -c "$command" 3>&- || status=$?
      fi
    done
    exit $status ;;
esac
"""

# An installer that installs a `python` which notes what it is told and does what the test planned:
# `plan` has one line a start, and the first worker takes the line off.
UV = r"""#!/usr/bin/env bash
if [ "$1" = pip ]; then
  echo "$PWD $*" >>~/installed
  exit
fi
mkdir -p "${@: -1}/bin"
cat >"${@: -1}/bin/python" <<'END'
#!/usr/bin/env bash
printf '%s\x1f' "$(basename "$PWD")" "$@" >>"$CLOUD/runs"; echo >>"$CLOUD/runs"
if [ "${HOME##*/}" = 1 ]; then trap "" TERM; sleep 0.3; exit; fi
plan=$(head -n 1 "$CLOUD/plan"); sed -i 1d "$CLOUD/plan"
echo "told to $plan"
case $plan in
  preempt) echo PREEMPTED >"$CLOUD/vm"; sleep 0.5; exit 143 ;;
  suspend) echo SUSPENDED >"$CLOUD/request"; rm "$CLOUD/vm"; sleep 0.5; kill -9 $PPID ;;
  fail) exit 3 ;;
  obey) trap 'echo "Asked to stop: saved step 5 of 9"; exit 143' TERM; for _ in {1..400}; do sleep 0.05; done ;;
  finish) sleep 0.3 ;;
esac
END
chmod +x "${@: -1}/bin/python"
"""


@pytest.fixture
def cloud(tmp_path):
  """A checkout with the launcher, an imitated Google Cloud, and a function that runs the launcher."""
  return Cloud(tmp_path)


class Cloud:
  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.bin, self.checkout = folder / "bin", folder / "checkout"
    (self.checkout / "launch").mkdir(parents=True)
    for script in (SCRIPT, "launch/common.sh"):
      shutil.copy(ROOT / script, self.checkout / script)
    (self.checkout / "requirements.txt").write_text("jax\n")
    (self.checkout / "configs").mkdir()
    (self.checkout / "configs/webvid.py").write_text("")
    git = "git -c user.name=a -c user.email=a@b -c commit.gpgsign=false"
    for command in ("git init -q", "git add .", f"{git} commit -q -m One"):
      subprocess.run(shlex.split(command), cwd=self.checkout, check=True)
    self.bin.mkdir()
    for name, text in {"gcloud": GCLOUD, "uv": UV}.items():
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)
    self.env = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    self.env |= {"CLOUD": str(folder), "PATH": f"{self.bin}:{os.environ['PATH']}"}
    self.env |= {"TMPDIR": str(folder)}

  def launch(self, *args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      ["bash", str(self.checkout / SCRIPT), *args],
      env=self.env | env,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def ok(self, command: str, *args: str) -> str:
    done = self.launch(command, *FLAGS, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  def plan(self, *starts: str) -> None:
    (self.folder / "plan").write_text("".join(f"{start}\n" for start in starts))

  def calls(self) -> list[list[str]]:
    """What gcloud was called with, in order."""
    calls = (self.folder / "calls").read_text().split("\x1e")[:-1]
    return [call.split("\x1f")[:-1] for call in calls]

  def done(self) -> list[str]:
    """The calls that change something."""
    verbs = [" ".join(call[2:4]) for call in self.calls()]
    return [verb for verb in verbs if verb.split()[1] in ("create", "delete", "scp")]

  def runs(self) -> list[list[str]]:
    """The folder and the arguments of every start of fbjax.main on a worker."""
    lines = (self.folder / "runs").read_text().splitlines()
    return [line.split("\x1f")[:-1] for line in lines]

  def states(self) -> str:
    return self.ok("status").split("runs: ")[1].strip()

  def wait_for(self, states: str) -> None:
    for _ in range(100):
      if self.states() == states:
        return
      time.sleep(0.05)
    raise AssertionError(f"the runs are {self.states()}, not {states}")

  def wait_for_runs(self, count: int) -> None:
    """A run has begun when the launcher ends; when its first line is there is the machine's affair."""
    for _ in range(100):
      if len(self.runs()) == count:
        return
      time.sleep(0.05)
    raise AssertionError(f"{len(self.runs())} runs were started, not {count}")


def dry(command: str, *args: str) -> list[list[str]]:
  """The commands that a dry run prints, as a shell that they are pasted into understands them."""
  env = {k: v for k, v in os.environ.items() if k not in SETTINGS}
  env |= {"PATH": "/usr/bin:/bin"}  # without gcloud
  printed = bash(env, str(ROOT / SCRIPT), command, *FLAGS, "--dry-run", *args)
  note = r"""{ printf '%s\x1f' "${FUNCNAME[0]}" "$@"; printf '\x1e'; }"""
  shell = "".join(f"{name}() {note}\n" for name in ("gcloud", "git", "rm"))
  pasted = bash(env, "-c", shell + printed)
  return [words.split("\x1f")[:-1] for words in pasted.split("\x1e")[:-1]]


def bash(env: dict[str, str], *args: str) -> str:
  done = subprocess.run(["bash", *args], env=env, capture_output=True, text=True)
  assert done.returncode == 0 and done.stderr == "", done.stderr
  return done.stdout


@pytest.mark.parametrize("script", ["common.sh", "tpu_vm.sh", "gke.sh", "slurm_gpu.sh"])
def test_a_script_is_bash_and_shellcheck_finds_nothing(script):
  script = str(ROOT / "launch" / script)
  subprocess.run(["bash", "-n", script], check=True)
  beside = pathlib.Path(sys.executable).parent / "shellcheck"
  shellcheck = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
  if shellcheck is None:
    pytest.skip("no shellcheck")
  found = subprocess.run([shellcheck, "-x", script], cwd=ROOT, capture_output=True, text=True)
  assert found.returncode == 0, found.stdout


def test_a_dry_create_asks_for_the_type_with_the_software_it_needs():
  *_, create = dry("create")
  assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
  assert create[5:] == [
    "demo",
    "--node-id=demo",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
    *WHERE,
  ]
  assert "--runtime-version=tpu-x" in dry("create", "--version=tpu-x")[-1]
  assert "--runtime-version=v2-alpha-tpuv6e" in dry("create", "--type=v6e-8")[-1]


def test_a_dry_setup_copies_tracked_files_and_installs_on_all_workers():
  _, archive, copy, _, install = dry("setup")
  head = subprocess.run(
    ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
  ).stdout.strip()
  assert archive[3] == "archive" and archive[-1] == head
  assert copy[5:7] == [archive[-2].removeprefix("--output="), "demo:fbjax.tar.gz"]
  for command in (copy, install):
    assert command[:4] == SSH[:4] and "--worker=all" in command and command[-2:] == WHERE
  assert '-r ~/fbjax/requirements.txt "jax[tpu]" gcsfs' in " ".join(install)


@pytest.mark.parametrize(
  ("command", "worker", "words"),
  [
    (
      "run",
      "all",
      ["setsid", "--workdir=gs://mine/demo", "--config=configs/webvid.py", *EXTRA[:1]],
    ),
    ("log", "0", ["tail", "-F ~/fbjax.log"]),
    ("status", "all", ["state=running"]),
    ("stop", "all", ["-TERM"]),
  ],
)
def test_a_dry_command_reaches_its_workers(command, worker, words):
  *_, ssh = dry(command, "--", *EXTRA)
  assert ssh[:6] == SSH and f"--worker={worker}" in ssh and ssh[-2:] == WHERE
  for word in words:
    assert word in ssh[-3]


def test_a_dry_delete_also_deletes_the_nodes():
  *_, delete = dry("delete")
  assert delete[3:8] == ["queued-resources", "delete", "demo", "--force", "--quiet"]
  assert delete[-2:] == WHERE


def test_a_dry_watch_prints_the_steps_that_the_commands_print():
  watched = dry("watch", "--", *EXTRA)
  steps = [dry(step, "--", *EXTRA) for step in ("delete", "create", "setup", "run")]
  assert watched[2:] == [command for step in steps for command in step]


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    (["create"], "NAME is not set; give --name=... or set it in the environment"),
    (["create", "--name=a", "--project=b"], "ZONE is not set"),
    (["create", "--name=a", "--zone=z"], "PROJECT is not set"),
    (["create", *FLAGS, "--type="], "TYPE is not set"),
    (["create", *FLAGS, "--type=h100-8"], "VERSION is not set"),
    (["run", *FLAGS, "--workdir="], "WORKDIR is not set"),
    (["run", *FLAGS, "--workdir=runs/x"], "runs/x, which would be lost with the VM"),
    (["watch", *FLAGS, "--config="], "CONFIG is not set"),
    (["watch", *FLAGS, "--config=configs/webvide.py:x"], "has no file configs/webvide.py"),
    (["setup", *FLAGS, "--revision=nowhere"], "has no commit nowhere"),
    (["watch", *FLAGS, "--revision=nowhere"], "has no commit nowhere"),
    (["run", *FLAGS, "--steps=3"], "--steps=3 is not a flag of run"),
    (["fly"], "no command fly"),
  ],
)
def test_a_mistake_ends_with_one_sentence(cloud, args, sentence):
  done = cloud.launch(*args)
  assert done.returncode == 1
  assert done.stderr.startswith("error: ") and sentence in done.stderr
  assert done.stderr.count("\n") == 1 and done.stdout == ""
  assert not (cloud.folder / "calls").exists()


def test_a_missing_gcloud_is_named(cloud):
  bare = cloud.folder / "bare"
  bare.mkdir()
  for tool in ("bash", "dirname", "tr"):
    (bare / tool).symlink_to(shutil.which(tool))
  done = cloud.launch("status", *FLAGS, PATH=str(bare))
  assert done.returncode == 1 and done.stderr.startswith("error: gcloud is not installed")


def test_settings_come_from_the_environment_and_flags_win(cloud):
  env = {"NAME": "other", "ZONE": "z", "PROJECT": "p", "TYPE": "v4-8", "SPOT": "0", "DRY_RUN": "1"}
  done = cloud.launch("create", "--name=demo", **env)
  create = done.stdout.splitlines()[-1]
  assert "create demo " in create and create.endswith("--zone=z --project=p")
  assert "--runtime-version=tpu-ubuntu2204-base" in create and "--spot" not in create
  assert "usage: " in cloud.launch("--help").stdout


def test_the_steps_by_hand(cloud):
  cloud.plan("obey", "finish")
  cloud.ok("create")
  assert "demo exists already" in cloud.ok("create")
  assert cloud.done() == ["queued-resources create"]

  early = cloud.launch("run", *FLAGS)
  assert early.returncode == 1 and "use setup first" in early.stderr
  (cloud.checkout / "not_tracked.txt").write_text("")
  cloud.ok("setup")
  for worker in ("0", "1"):
    home = (cloud.folder / "workers" / worker).resolve()
    assert sorted(f.name for f in (home / "fbjax").iterdir()) == [
      "configs",
      "launch",
      "requirements.txt",
    ]
    installed = (home / "installed").read_text()
    assert f"-r {home}/fbjax/requirements.txt jax[tpu] gcsfs" in installed
  assert cloud.states() == "idle"

  cloud.ok("run", "--", *EXTRA)
  for command in ("run", "setup"):
    twice = cloud.launch(command, *FLAGS)
    assert twice.returncode == 1 and "error: fbjax already runs on demo" in twice.stderr
  cloud.wait_for_runs(2)
  assert "running" in cloud.states()
  cloud.ok("stop")
  cloud.wait_for("exit0 stopped")  # the second worker has slept its time
  log = (cloud.folder / "workers/0/fbjax.log").read_text()
  assert log == "told to obey\nAsked to stop: saved step 5 of 9\n"

  cloud.ok("run", "--", *EXTRA)
  cloud.wait_for("exit0")
  command = ["-m", "fbjax.main", "--config=configs/webvid.py", "--workdir=gs://mine/demo"]
  assert cloud.runs() == [["fbjax", *command, *EXTRA]] * 4

  cloud.ok("delete")
  assert "request: none\nvm: none" in cloud.ok("status")
  assert "There is no demo" in cloud.ok("delete")


def test_watch_resumes_what_was_preempted_with_the_same_command_and_commit(cloud):
  cloud.plan("preempt", "suspend", "finish")
  (cloud.folder / "away").write_text("")  # the first look at the state fails
  out = cloud.ok("watch", "--", *EXTRA)
  assert "Cannot ask for the state of demo; trying again." in out
  assert "request: none, vm: none" in out
  assert "vm: PREEMPTED" in out and "request: SUSPENDED" in out
  assert out.endswith("The run is done; delete demo once you have what you need.\n")

  life = ["queued-resources create", "tpu-vm scp"]
  assert cloud.done() == life + 2 * ["queued-resources delete", *life]
  runs = cloud.runs()
  assert len(runs) == 6 and all(run == runs[0] for run in runs)
  assert runs[0][-2:] == EXTRA
  calls = cloud.calls()
  for verb in ("create", "scp"):
    same = [call for call in calls if call[3] == verb]
    assert len(same) == 3 and all(call == same[0] for call in same)
  starts = [call for call in calls if any("setsid" in word for word in call)]
  assert len(starts) == 3 and all(call == starts[0] for call in starts)
  assert all(call[-2:] == WHERE for call in calls)

  again = cloud.ok("watch", "--", *EXTRA)  # finds it done
  assert "The run is done" in again and len(cloud.runs()) == 6


def test_watch_starts_again_what_was_asked_to_stop_or_failed_but_not_for_ever(cloud):
  cloud.plan("fail", "finish")
  out = cloud.ok("watch", "--retries=1")
  assert "The run ended with: exit0 exit3" in out and "told to fail" in out
  assert len(cloud.runs()) == 4 and cloud.done().count("queued-resources create") == 1

  cloud.ok("delete")
  cloud.plan("fail", "fail", "finish")
  done = cloud.launch("watch", *FLAGS, "--retries=1")
  assert done.returncode == 1
  assert "error: demo failed 2 times" in done.stderr
  assert (cloud.folder / "plan").read_text() == "finish\n"


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm_gpu.sh"])
def test_the_example_of_the_help_needs_nothing_but_what_it_names(script):
  """A dry run of it ends well, its config makes its own clips, and 16 devices divide its batch."""
  help = bash(dict(os.environ), str(ROOT / "launch" / script), "--help")
  example = shlex.split(help.split("example: ")[1].replace("\\\n", " "))
  assert example.pop(0) == f"launch/{script}"
  env = {k: v for k, v in os.environ.items() if k not in SETTINGS}
  bash(env, str(ROOT / "launch" / script), *example[:1], "--dry-run", *example[1:])
  (name,) = [word.removeprefix("--config=") for word in example if word.startswith("--config=")]
  config = main.load_config(str(ROOT / name))
  assert (
    config.data.name == "synthetic" and not config.weights and config.train.batch_size % 16 == 0
  )


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm_gpu.sh"])
def test_the_flags_of_the_help_are_those_there_are(script):
  path = str(ROOT / "launch" / script)
  help = bash(dict(os.environ), path, "--help")
  command = shlex.split(help.split("example: ")[1])[1]
  flags = [line.split()[0] for line in help.splitlines() if line.startswith("  --")]
  assert len(flags) > 10
  done = subprocess.run(["bash", path, command, *flags], capture_output=True, text=True)
  assert "is not a flag" not in done.stderr
  for wrong in ("--wrong=1", "--name", "--dry-run=1", "--=x", "--name image=x", "name=x"):
    done = subprocess.run(["bash", path, command, wrong], capture_output=True, text=True)
    assert done.stderr.startswith(f"error: {wrong} is not a flag of {command}; ")


def test_all_know_the_exit_status_of_a_run_that_was_asked_to_stop():
  assert processes.ASKED == 143
  for script in ("tpu_vm.sh", "slurm_gpu.sh", "gke_jobset.yaml"):
    assert "143" in (ROOT / "launch" / script).read_text()


class Cluster:
  """Commands that are imitated: each notes what it is told, and does what the test has planned."""

  def __init__(self, folder: pathlib.Path, script: str, **commands: str):
    self.folder, self.script = folder, ROOT / "launch" / script
    (folder / "bin").mkdir()
    note = """#!/usr/bin/env bash
printf '%s\\x1f' "${0##*/}" "$@" >>"$CLUSTER/calls"; printf '\\x1e' >>"$CLUSTER/calls"
"""
    for name, text in commands.items():
      (folder / "bin" / name).write_text(note + text)
      (folder / "bin" / name).chmod(0o755)
    names = {
      "NAME",
      "IMAGE",
      "WORKDIR",
      "CONFIG",
      "SPOT",
      "DRY_RUN",
      "TIME",
      "PYTHON",
      "GPUS",
      "CPUS",
    }
    self.env = {k: v for k, v in os.environ.items() if k not in names}
    self.env |= {"CLUSTER": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

  def launch(self, *args: str, **env: str) -> subprocess.CompletedProcess:
    command = ["bash", str(self.script), *args]
    return subprocess.run(command, env=self.env | env, capture_output=True, text=True, timeout=60)

  def ok(self, *args: str) -> str:
    done = self.launch(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  def calls(self) -> list[list[str]]:
    """What was called with what, in order."""
    file = self.folder / "calls"
    calls = file.read_text().split("\x1e")[:-1] if file.exists() else []
    return [call.split("\x1f")[:-1] for call in calls]

  def fails(self, *args: str, **env: str) -> str:
    done = self.launch(*args, **env)
    assert done.returncode == 1 and done.stdout == "" and not self.calls()
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


KUBECTL = """
case "$1" in
  get) [ ! -f "$CLUSTER/jobset" ] || printf 'demo %s' "$(cat "$CLUSTER/jobset")" ;;
  apply) cat >"$CLUSTER/applied"; : >"$CLUSTER/jobset" ;;
  delete) rm -f "$CLUSTER/jobset" ;;
esac
"""
GKE = [
  *("start", "--name=demo", "--image=mine/fbjax:1", "--accelerator=tpu-v5-lite-podslice"),
  *("--topology=4x4", "--workdir=gs://mine/demo", "--config=configs/shapes.py"),
]


@pytest.fixture
def gke(tmp_path):
  return Cluster(tmp_path, "gke.sh", kubectl=KUBECTL)


def test_a_jobset_has_a_pod_for_each_host_that_saves_when_it_is_asked_to_stop(gke):
  gke.ok(*GKE, "--slices=2", "--spot", "--", '--config.data.path=gs://mine/"it\'s" \\here: x')
  text = (gke.folder / "applied").read_text()
  assert "${" not in text
  made = yaml.safe_load(text)
  assert made["metadata"]["name"] == "demo"
  (slices,) = made["spec"]["replicatedJobs"]
  job = slices["template"]["spec"]
  assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 4, 4)
  pod = job["template"]["spec"]
  assert pod["terminationGracePeriodSeconds"] == 30 and pod["restartPolicy"] == "Never"
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
  assert {x["value"] for x in pod["tolerations"] if "value" in x} == {"true"}
  (container,) = pod["containers"]
  assert container["command"] == ["python", "-m", "fbjax.main"]  # no shell between SIGTERM and it
  assert container["args"] == [
    "--config=configs/shapes.py",
    "--workdir=gs://mine/demo",
    '--config.data.path=gs://mine/"it\'s" \\here: x',
  ]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  # Who was asked to stop begins again, however often; who fails does not.
  asked, *_ = made["spec"]["failurePolicy"]["rules"]
  assert asked["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  codes = [
    rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
  ]
  assert [(code["containerName"], code["values"]) for code in codes] == [(container["name"], [143])]


@pytest.mark.parametrize(
  ("topology", "chips", "hosts", "each"),
  [("2x2x4", 4, 4, 4), ("2x4", 8, 1, 8), ("2x2", 4, 1, 4), ("1x1", 4, 1, 1), ("16x16", 4, 64, 4)],
)
def test_a_slice_has_as_many_hosts_as_its_chips_need(gke, topology, chips, hosts, each):
  gke.ok(*GKE, f"--topology={topology}", f"--chips={chips}")
  job = yaml.safe_load((gke.folder / "applied").read_text())["spec"]["replicatedJobs"][0]
  pods = job["template"]["spec"]
  (container,) = pods["template"]["spec"]["containers"]
  assert pods["parallelism"] == pods["completions"] == hosts
  assert container["resources"]["limits"]["google.com/tpu"] == each


def test_a_jobset_is_started_once_and_begun_again_where_it_has_ended(gke):
  gke.ok(*GKE)
  first = (gke.folder / "applied").read_text()
  assert "demo runs already" in gke.ok(*GKE)
  verbs = [call[1] for call in gke.calls()]
  assert verbs == ["get", "apply", "get"]
  for ended in ("Completed", "Failed"):
    (gke.folder / "jobset").write_text(ended)
    gke.ok(*GKE)
    assert [call[1] for call in gke.calls()][-3:] == ["get", "delete", "apply"]
  assert (gke.folder / "applied").read_text() == first
  gke.ok("stop", "--name=demo")
  assert gke.calls()[-1] == ["kubectl", "delete", "jobset", "demo", "--ignore-not-found"]


def test_a_dry_start_prints_what_would_be_applied_and_asks_nobody(gke):
  printed = gke.ok(*GKE, "--dry-run")
  assert not gke.calls()
  gke.ok(*GKE)
  assert (gke.folder / "applied").read_text() in printed
  for command in ("status", "log", "stop"):
    assert gke.ok(command, "--name=demo", "--dry-run").startswith("kubectl ")
  assert len(gke.calls()) == 2


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    (["start"], "NAME is not set; give --name=... or set it in the environment"),
    ([*GKE, "--image="], "IMAGE is not set"),
    ([*GKE, "--topology=16"], "TOPOLOGY is 16; expected such as 4x4"),
    ([*GKE, "--topology=4x4x4x4"], "TOPOLOGY is 4x4x4x4; expected such as 4x4"),
    ([*GKE, "--name=Demo_1"], "NAME is Demo_1; expected at most 40 of a-z"),
    ([*GKE, "--accelerator=v5e"], "ACCELERATOR is v5e; expected such as tpu-v5-lite-podslice"),
    ([*GKE, "--topology=3x3"], "TOPOLOGY 3x3 is 9 chips, which hosts of 4 do not make"),
    ([*GKE, "--slices=no"], "SLICES is no; expected a whole number"),
    ([*GKE, "--workdir=runs/x"], "runs/x, which would be lost with the pods"),
    ([*GKE, "--steps=3"], "--steps=3 is not a flag of start"),
    (["fly"], "no command fly"),
  ],
)
def test_a_mistake_with_a_jobset_ends_with_one_sentence(gke, args, sentence):
  assert sentence in gke.fails(*args)


SLURM = [
  "submit",
  "--name=demo",
  "--nodes=2",
  "--workdir=/scratch/demo",
  "--config=configs/shapes.py",
]
SLURM_COMMANDS = {
  "squeue": '[ ! -f "$CLUSTER/queued" ] || cat "$CLUSTER/queued"',
  # SLURM runs a copy of the script, from its own folder.
  "sbatch": """
while [ "$1" != "${1#--}" ]; do shift; done
cp "$1" "$CLUSTER/copy.sh"; shift
cd / && SLURM_JOB_ID=17 SLURM_CPUS_PER_TASK=8 bash "$CLUSTER/copy.sh" "$@" || echo "$?" >"$CLUSTER/status"
""",
  "srun": """while [ "$1" != "${1#--}" ]; do shift; done
exec "$@" """,
  "scontrol": "",
  "python": 'pwd >"$CLUSTER/folder"; exit "$(cat "$CLUSTER/plan")"',
}


@pytest.fixture
def slurm(tmp_path):
  return Cluster(tmp_path, "slurm_gpu.sh", **SLURM_COMMANDS)


@pytest.mark.parametrize(("plan", "requeued"), [(0, False), (1, False), (143, True)])
def test_a_job_goes_back_into_the_queue_when_its_run_was_asked_to_stop(slurm, plan, requeued):
  (slurm.folder / "plan").write_text(str(plan))
  slurm.ok(*SLURM, "--", *EXTRA)
  _, sbatch, srun, python, *more = slurm.calls()
  # A process for each GPU; SIGTERM goes to them before the time is up.
  assert {"--ntasks-per-node=8", "--gpus-per-node=8", "--nodes=2"} <= set(sbatch)
  assert {"--requeue", "--open-mode=append", "--signal=TERM@120"} <= set(sbatch)
  command = ["-u", "-m", "fbjax.main", "--config=configs/shapes.py", "--workdir=/scratch/demo"]
  assert python == ["python", *command, *EXTRA]
  # No shell between SIGTERM and Python; and all CPUs, which srun does not hand on by itself.
  assert srun == ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=8", *python]
  assert (slurm.folder / "folder").read_text().strip() == str(ROOT)
  assert more == ([["scontrol", "requeue", "17"]] if requeued else [])
  status = slurm.folder / "status"
  assert (int(status.read_text()) if status.exists() else 0) == plan


def test_a_job_that_is_queued_is_not_submitted_twice(slurm):
  (slurm.folder / "queued").write_text("16\n17\n")
  assert "demo is submitted already, as job 16, 17." in slurm.ok(*SLURM)
  assert [call[0] for call in slurm.calls()] == ["squeue"]
  assert slurm.calls()[0][1:] == ["--me", "--noheader", "--name=demo", "--format=%i"]


def test_a_dry_submit_prints_the_command_that_it_would_run(slurm):
  (slurm.folder / "plan").write_text("0")
  options = [*SLURM, "--sbatch=--partition=a --account=b", "--python=/env/bin/python"]
  printed = slurm.ok(*options, "--dry-run", "--", *EXTRA)
  assert not slurm.calls()
  slurm.launch(*options, "--", *EXTRA)
  _, sbatch, *_ = slurm.calls()
  assert shlex.split(printed) == sbatch and {"--partition=a", "--account=b"} <= set(sbatch)


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    (["submit"], "NAME is not set; give --name=... or set it in the environment"),
    ([*SLURM, "--config="], "CONFIG is not set"),
    ([*SLURM, "--workdir=runs/x"], "WORKDIR is runs/x; give a full path that all nodes mount"),
    ([*SLURM, "--time=abc"], "TIME is abc; expected minutes, hours:minutes:seconds"),
    ([*SLURM, "--gpus=many"], "GPUS is many; expected a whole number"),
    ([*SLURM, "--steps=3"], "--steps=3 is not a flag of submit"),
    (["job"], "job is for SLURM to call; use submit"),
    (["fly"], "no command fly"),
  ],
)
def test_a_mistake_with_a_job_ends_with_one_sentence(slurm, args, sentence):
  assert sentence in slurm.fails(*args)


@pytest.mark.parametrize(
  ("script", "args", "missing"), [("gke.sh", GKE, "kubectl"), ("slurm_gpu.sh", SLURM, "sbatch")]
)
def test_a_missing_command_is_named(tmp_path, script, args, missing):
  cluster = Cluster(tmp_path, script)
  for tool in ("bash", "dirname", "tr"):
    (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
  told = cluster.fails(*args, PATH=str(tmp_path / "bin"))
  assert f"{missing} is not installed" in told
