"""What docs/machines.md has readers copy, run as two machines with one rank each, on this one.

The commands and files are the page's own: only names of machines and folders, ports and numbers of
GPUs are replaced, and the config is that of a tiny model. Each run must come out bit-identical to
that of one machine with two ranks.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest
import torch
import yaml
from launch import free_port, launcher, rank_variables
from runs import CONFIG, metrics, repeatable
from safetensors.torch import load_file
from snippets import ROOT, commands, files

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "machines.md"
FILES = files(PAGE)
TRAINER = "fairhuman/train.py"
OUTPUT = Path("outputs") / "sdxl_full"
PATIENCE_S = 900
BIN = Path(sys.executable).parent


class Machines:
    """What two machines share, and how they run what the page says."""

    def __init__(self, shared: Path, model: Path, people: Path) -> None:
        self.shared = shared
        self.clone = shared / "fairhuman"
        self.output = shared / OUTPUT
        self.port = free_port()
        (self.clone / "configs").mkdir(parents=True)
        (self.clone / ".venv" / "bin").mkdir(parents=True)
        (self.clone / ".venv" / "bin" / "activate").write_text(f"PATH={BIN}:$PATH\n")
        (self.clone / "fairhuman").symlink_to(ROOT / "fairhuman")
        for name in ("outputs", "cache", "logs"):
            (shared / name).mkdir()
        shutil.copytree(people, shared / "people")
        text = CONFIG.format(model=model, people="set by the command", output="likewise")
        text = text.replace("steps: 6", "steps: 10").replace("resume: none", "resume: auto")
        (self.clone / "configs" / "sdxl_full.yaml").write_text(text)

    def here(self, text: str) -> str:
        """Return what stands on the page, with this machine's names and numbers in it."""
        for old, new in {
            "/shared": str(self.shared),
            "/opt/fairhuman": str(self.clone),
            "29500": str(self.port),
            "slots=8": "slots=1",
            "--nproc-per-node=8": "--nproc-per-node=1",
            "OMP_NUM_THREADS=8": "OMP_NUM_THREADS=1",
            "--rdzv-endpoint=node1": "--rdzv-endpoint=localhost",
            "sdxl-full-0.sdxl-full": "127.0.0.1",
        }.items():
            text = text.replace(old, new)
        return text

    def command(self, program: str) -> list[str]:
        """Return the page's command that starts the trainer by a launcher."""
        [words] = [words for words in commands(PAGE) if words[0] == program and TRAINER in words]
        return [self.here(word) for word in words]

    def arguments(self) -> list[str]:
        """Return the trainer's own arguments on the page."""
        words = self.command("deepspeed")
        return words[words.index(TRAINER) + 1 :]

    @contextmanager
    def start(self, words: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command in the clone; at the end nothing of it is left."""
        path = f"{variables.pop('PATH', '')}:{BIN}:{os.environ['PATH']}"
        printed = (self.shared / "logs" / f"{time.monotonic_ns()}.txt").open("w+")
        process = subprocess.Popen(
            words,
            cwd=self.clone,
            env={**os.environ, **variables, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process.stdout = printed
        try:
            yield process
        finally:
            end(process.pid)
            process.wait()
            printed.close()

    def run(self, *machines: Sequence[str], **variables: str) -> str:
        """Run a command on each machine to the end, which must be a good one."""
        with ExitStack() as started:
            processes = [started.enter_context(self.start(m, **variables)) for m in machines]
            codes = [process.wait(PATIENCE_S) for process in processes]
            printed = "\n".join(said(process) for process in processes)
        assert not any(codes), printed[-6000:]
        return printed

    def steps(self) -> int:
        """Return how many steps the run has logged."""
        try:
            return len(metrics(self.output))
        except (FileNotFoundError, IndexError, AssertionError, ValueError):
            return 0  # not yet, or half a line


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    printed: IO[str] = process.stdout
    printed.seek(0)
    return printed.read()


def end(pid: int) -> None:
    """Kill a process and those that it has started."""
    try:
        parent = psutil.Process(pid)
        found = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def ranks_under(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes below one that are ranks, not their launchers."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if TRAINER in child.cmdline()[:3]]


def wait_until(come: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    """Wait for something that these processes are to bring about."""
    deadline = time.monotonic() + PATIENCE_S
    while not come():
        printed = "\n".join(said(process)[-3000:] for process in processes)
        assert time.monotonic() < deadline, printed
        assert all(process.poll() is None for process in processes), printed
        time.sleep(0.02)


@pytest.fixture
def machines(tiny_model: Path, people: Path, tmp_path: Path) -> Machines:
    return Machines(tmp_path / "shared", tiny_model, people)


@pytest.fixture(scope="module")
def one_machine(tiny_model: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the same run by two ranks of one machine."""
    found = Machines(tmp_path_factory.mktemp("one machine") / "shared", tiny_model, people)
    found.run([*launcher(2), TRAINER, *found.arguments()])
    return found.output


def same(found: Path, expected: Path) -> None:
    assert repeatable(found) == repeatable(expected)
    weights = Path("final") / "unet" / "diffusion_pytorch_model.safetensors"
    mine, theirs = load_file(found / weights), load_file(expected / weights)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.nightly
def test_a_hostfile_over_ssh(machines: Machines, one_machine: Path, tmp_path: Path) -> None:
    for name in ("hostfile", ".deepspeed_env"):
        (machines.clone / name).write_text(machines.here(FILES[name]))
    # What a CPU needs to be taken for two machines: the far side has not this one's environment.
    with (machines.clone / ".deepspeed_env").open("a") as variables:
        variables.write("DS_ACCELERATOR=cpu\n")
    words = machines.command("deepspeed")
    words[words.index("--master_addr") + 1] = "127.0.0.1"
    words[1:1] = ["--master_port", str(machines.port)]
    with sshd(tmp_path) as folder_of_ssh:
        printed = machines.run(words, PATH=str(folder_of_ssh))
    assert "node1" in printed
    assert "node2" in printed
    same(machines.output, one_machine)
    logs = list((machines.shared / "logs").glob("*_rank?.log"))
    assert sorted(path.name[-9:-4] for path in logs) == ["rank0", "rank1"]
    [first] = [path for path in logs if "rank0" in path.name]
    assert "Done: 10 steps" in first.read_text()


@contextmanager
def sshd(folder: Path) -> Iterator[Path]:
    """Run an ssh server for this user; yields a folder whose `ssh` finds node1 and node2 there."""
    search = f"{os.environ['PATH']}:/usr/sbin"
    for program in ("sshd", "ssh", "ssh-keygen", "pdsh"):
        if not shutil.which(program, path=search):
            pytest.skip(f"no {program} here: apt install openssh-server pdsh")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # without it, sshd does not start as root
    port = free_port()
    for key in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPasswordAuthentication no\n"
    )
    (folder / "ssh_config").write_text(
        f"Host node1 node2\nHostName 127.0.0.1\nPort {port}\nIdentityFile {folder}/user\n"
        f"IdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile {folder}/known\n"
    )
    programs = folder / "bin"
    script(programs / "ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')
    server = [shutil.which("sshd", path=search), "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "sshd.txt").open("w") as printed:
        process = subprocess.Popen([str(word) for word in server], stderr=printed)
        try:
            deadline = time.monotonic() + 60
            while not answers(port):
                assert process.poll() is None, (folder / "sshd.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield programs
        finally:
            end(process.pid)
            process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_torchrun(machines: Machines, one_machine: Path) -> None:
    words = machines.command("torchrun")
    machines.run(words, words, PET_LOCAL_ADDR="127.0.0.1")
    same(machines.output, one_machine)


SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=1 SLURM_LOCALID=0
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
wait $first; code=$?
wait $second; other=$?
exit $((code > other ? code : other))
"""
SCONTROL = """
case $1 in
    show) echo 127.0.0.1; echo 127.0.0.2 ;;
    requeue) echo "$2" >> {requeued} ;;
esac
"""


@pytest.mark.nightly
def test_slurm_puts_back_a_job_whose_time_is_up(
    machines: Machines, one_machine: Path, tmp_path: Path
) -> None:
    """With a stand-in for srun, which starts the tasks, and for scontrol."""
    requeued, programs = tmp_path / "requeued", tmp_path / "bin"
    script(programs / "srun", SRUN)
    script(programs / "scontrol", SCONTROL.format(requeued=requeued))
    job = machines.clone / "train.sbatch"
    job.write_text(machines.here(FILES[job.name]))
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "1"}
    with machines.start(["bash", job.name], PATH=str(programs), **slurm) as batch:
        wait_until(lambda: machines.steps() > 0, batch)
        ranks = ranks_under(batch)
        assert len(ranks) == 2
        for rank in ranks:
            rank.terminate()
        assert batch.wait(PATIENCE_S) == 75, said(batch)
        assert "Stopped after step" in said(batch)
    assert requeued.read_text() == "7\n"
    assert not (machines.output / "final").exists()
    machines.run(["bash", job.name], PATH=str(programs), **slurm)
    assert requeued.read_text() == "7\n"  # not again: the run is finished
    same(machines.output, one_machine)


@pytest.mark.nightly
def test_kubernetes_starts_all_pods_again_when_one_is_drained(
    machines: Machines, one_machine: Path
) -> None:
    _, _, job = yaml.safe_load_all(machines.here(FILES["fairhuman.yaml"]))
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    variables["OMP_NUM_THREADS"] = "1"
    pods = [
        [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["command"]]
        for index in range(job["spec"]["completions"])
    ]
    assert container["workingDir"] == str(machines.clone)
    with ExitStack() as started:
        running = [started.enter_context(machines.start(words, **variables)) for words in pods]
        wait_until(lambda: machines.steps() > 0, *running)
        running[1].terminate()
        codes = [process.wait(PATIENCE_S) for process in running]
        printed = "\n".join(said(process) for process in running)
    assert all(codes), printed  # else its index would count as complete
    assert "Stopped after step" in printed
    assert not (machines.output / "final").exists()
    machines.run(*pods, **variables)
    same(machines.output, one_machine)


def test_the_parts_of_the_kubernetes_file_fit_together() -> None:
    service, claim, job = yaml.safe_load_all(FILES["fairhuman.yaml"])
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    options = dict(word.split("=", 1) for word in container["command"] if word.startswith("--"))
    name, pods = job["metadata"]["name"], spec["completions"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert options["--master-addr"] == f"{name}-0.{pod['subdomain']}"
    assert spec["parallelism"] == pods == int(options["--nnodes"])
    assert options["--nproc-per-node"] == container["resources"]["limits"]["nvidia.com/gpu"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    grace = pod["terminationGracePeriodSeconds"]
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    claimed = mounts["/shared"]["persistentVolumeClaim"]["claimName"]
    assert claimed == claim["metadata"]["name"]
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize(
    ("key", "folder"), [("train.output_dir", str(OUTPUT)), ("data.cache", "cache")]
)
def test_a_folder_that_is_not_shared_is_refused_before_a_model_is_loaded(
    machines: Machines, key: str, folder: str
) -> None:
    """Each rank in a mount namespace in which it alone sees what is in that folder."""
    own = machines.shared / folder
    own.mkdir(exist_ok=True)
    words = in_namespace(own, machines.clone, TRAINER, *machines.arguments())
    words.append("model.pretrained=/nowhere")  # it would be refused as the next
    with ExitStack() as started:
        ranks = [
            started.enter_context(machines.start(words, **rank_of_machine(rank, machines.port)))
            for rank in range(2)
        ]
        codes = [process.wait(PATIENCE_S) for process in ranks]
        printed = "".join(said(process) for process in ranks)
    assert codes == [2, 2], printed
    [line] = printed.splitlines()
    assert line.startswith(f"{key} = '{own}': rank 1 does not see what rank 0 writes there")


def in_namespace(own: Path, clone: Path, *words: str) -> list[str]:
    """Return a command for Python where a file system in memory lies over a folder."""
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
    inside += ['mount -t tmpfs none "$0"; exec "$@"', str(own)]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("this user may not make mount namespaces (unshare --mount)")
    return [*inside, sys.executable, *words]


def rank_of_machine(rank: int, port: int) -> Mapping[str, str]:
    """Return the environment of the only rank of a machine."""
    alone = {"LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    return {**rank_variables(rank, 2, port), **alone}
