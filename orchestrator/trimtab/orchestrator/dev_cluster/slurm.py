"""A real Slurm on this machine: slurmctld and one slurmd for each node.

Needs Debian's packages slurm-wlm and munge (or like ones), and root: only root's slurmd may
start jobs. Nothing of the machine's own Slurm or MUNGE is touched: the cluster has its own
ports, key, socket and configuration, all in one folder.

Source: slurm.conf(5), gres.conf(5); the timeouts are short so that recovery can be watched.
"""

import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError, JobFailedError
from trimtab.orchestrator.dev_cluster.daemons import Daemons, free_ports, wait_until

PARTITION: Final = "main"
_PROGRAMS: Final = ("slurmctld", "slurmd", "munged", "munge", "sinfo", "scontrol", "scancel")
_UP_TIMEOUT_S: Final = 30.0
_MEMORY_MB: Final = 64_000
"""Of each node, as its jobs see it; the machine has less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmCluster:
    """A development cluster by its folder."""

    folder: Path

    @property
    def config(self) -> Path:
        """What `SLURM_CONF` names."""
        return self.folder / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Slurm's commands, and Trimtab, find the cluster."""
        return {"SLURM_CONF": str(self.config)}

    def start(self, *, num_nodes: int, gpus_per_node: int, cpus_per_node: int) -> None:
        """Start what does not run yet; of a cluster that was made before, as it was made.

        Raises:
            InputError: Slurm is not installed, or this user may not run it.
            JobFailedError: A daemon does not come up; the message holds its last words.
        """
        _check_machine()
        if not self.config.exists():
            self._configure(
                num_nodes=num_nodes, gpus_per_node=gpus_per_node, cpus_per_node=cpus_per_node
            )
        daemons = Daemons(self.folder)
        if "munged" not in daemons.alive:
            daemons.start("munged", self._munged())
        self._await(daemons, "munged", ["munge", "-n", "-S", str(self._munge_socket)])
        if "slurmctld" not in daemons.alive:
            daemons.start("slurmctld", [_program("slurmctld"), "-D", "-f", str(self.config)])
        self._await(daemons, "slurmctld", ["scontrol", "ping"])
        for node in self.nodes:
            if f"slurmd-{node}" not in daemons.alive:
                self._start_slurmd(daemons, node)
        wait_until(
            lambda: len(self.states()) == len(self.nodes) and not self._lost(),
            what="every node is idle or busy",
            timeout_s=_UP_TIMEOUT_S,
        )

    def stop(self) -> None:
        """End the cluster's jobs and daemons, then remove its folder."""
        daemons = Daemons(self.folder)
        if "slurmctld" in daemons.alive:
            self._run(["scancel", "--user", getpass.getuser()])
        for pid in self._processes_of(None):
            _kill(pid)
        for name in reversed(daemons.alive):
            daemons.end(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_node(self, node: str, *, hard: bool = False) -> None:
        """Kill a node's slurmd; with `hard` also all that jobs run there, as a power cut does.

        Raises:
            InputError: There is no such node.
        """
        self._check_node(node)
        Daemons(self.folder).kill(f"slurmd-{node}")
        if hard:
            for pid in self._processes_of(node):
                _kill(pid)

    def start_node(self, node: str) -> None:
        """Start a killed node's slurmd again; Slurm takes the node back by itself.

        Raises:
            InputError: There is no such node.
        """
        self._check_node(node)
        daemons = Daemons(self.folder)
        if f"slurmd-{node}" not in daemons.alive:
            self._start_slurmd(daemons, node)
        wait_until(
            lambda: node not in self._lost(),
            what=f"node {node} is back",
            timeout_s=_UP_TIMEOUT_S,
        )

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes; none where there is no cluster in the folder."""
        if not self.config.exists():
            return ()
        lines = self.config.read_text().splitlines()
        return tuple(
            line.split()[0].removeprefix("NodeName=")
            for line in lines
            if line.startswith("NodeName=")
        )

    def states(self) -> dict[str, str]:
        """Slurm's word for each node's state; nothing while slurmctld does not answer."""
        answer = self._run(["sinfo", "-N", "-h", "-o", "%N %T"])
        return dict(line.split() for line in answer.stdout.splitlines() if " " in line)

    @property
    def is_running(self) -> bool:
        """Whether its slurmctld lives."""
        return "slurmctld" in Daemons(self.folder).alive

    def _lost(self) -> list[str]:
        fine = ("idle", "mixed", "allocated", "completing")
        return [node for node, state in self.states().items() if state not in fine]

    def _start_slurmd(self, daemons: Daemons, node: str) -> None:
        (self.folder / "spool" / node).mkdir(parents=True, exist_ok=True)
        argv = [_program("slurmd"), "-D", "-N", node, "-f", str(self.config)]
        daemons.start(f"slurmd-{node}", argv)

    def _await(self, daemons: Daemons, name: str, question: list[str]) -> None:
        try:
            wait_until(
                lambda: self._run(question).returncode == 0,
                what=f"{name} answers",
                timeout_s=_UP_TIMEOUT_S,
            )
        except JobFailedError as error:
            raise JobFailedError(f"{error}: {daemons.last_words(name)}") from error

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def _check_node(self, node: str) -> None:
        if node not in self.nodes:
            known = ", ".join(self.nodes) or "none: start the cluster first"
            raise InputError(f"node: expected one of {known}, got {node!r}")

    def _processes_of(self, node: str | None) -> list[int]:
        """What jobs of this cluster run on a node, or on all, and the daemons above it."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_bytes().split(b"\0")
                status = (process / "status").read_text()
            except OSError:
                continue  # it has ended, or is another user's
            names = [v for v in variables if v.startswith(b"SLURMD_NODENAME=")]
            if f"SLURM_CONF={self.config}".encode() not in variables or not names:
                continue
            if node is None or names == [f"SLURMD_NODENAME={node}".encode()]:
                found.append(int(process.name))
                parent = int(status.partition("PPid:")[2].split()[0])
                if _command(parent).startswith("slurmstepd"):
                    found.append(parent)
        return sorted(set(found), reverse=True)

    @property
    def _munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _munged(self) -> list[str]:
        folder = self._munge_socket.parent
        # --force: the socket may lie below a folder that only its owner may enter.
        return [
            _program("munged"),
            "--foreground",
            "--force",
            f"--key-file={folder / 'key'}",
            f"--socket={self._munge_socket}",
            f"--pid-file={folder / 'pid'}",
            f"--log-file={folder / 'log'}",
            f"--seed-file={folder / 'seed'}",
        ]

    def _configure(self, *, num_nodes: int, gpus_per_node: int, cpus_per_node: int) -> None:
        for name in ("etc", "state", "spool", "log", "munge", "gpus"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for index in range(gpus_per_node):
            # Slurm sets CUDA_VISIBLE_DEVICES for device files only; these are /dev/null's.
            device = self.folder / "gpus" / f"gpu{index}"
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        controller_port, *ports = free_ports(num_nodes + 1)
        text = _SLURM_CONF.format(
            folder=self.folder,
            host=socket.gethostname(),
            port=controller_port,
            user=getpass.getuser(),
            munge_socket=self._munge_socket,
        )
        gpus = f" Gres=gpu:{gpus_per_node}" if gpus_per_node else ""
        for index, port in enumerate(ports, start=1):
            text += (
                f"NodeName=n{index} NodeHostname={socket.gethostname()} "
                f"NodeAddr=127.0.0.1 Port={port} CPUs={cpus_per_node} "
                f"RealMemory={_MEMORY_MB}{gpus} State=UNKNOWN\n"
            )
        text += f"PartitionName={PARTITION} Nodes=n[1-{num_nodes}] Default=YES State=UP\n"
        if gpus_per_node:
            files = f"{self.folder}/gpus/gpu[0-{gpus_per_node - 1}]"
            gres = f"NodeName=n[1-{num_nodes}] Name=gpu File={files}\n"
            (self.folder / "etc" / "gres.conf").write_text(gres)
        self.config.write_text(text)


_SLURM_CONF: Final = """\
ClusterName=trimtab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge_socket}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=5,sched_interval=5,requeue_delay=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
KillWait=5
MinJobAge=300
MessageTimeout=10
JobRequeue=1
TreeWidth=65533
GresTypes=gpu
AccountingStorageType=accounting_storage/none
"""


def _check_machine() -> None:
    missing = [name for name in _PROGRAMS if _found(name) is None]
    if missing:
        raise InputError(
            f"dev-cluster: {', '.join(missing)} not found; install Slurm and MUNGE first: "
            "apt-get install slurm-wlm munge"
        )
    if os.geteuid() != 0:
        raise InputError(
            "dev-cluster: Slurm's daemons need root to start jobs; run it in a container or "
            "virtual machine as root, or try Ray: trimtab dev-cluster ray start"
        )


def _found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _program(name: str) -> str:
    path = _found(name)
    assert path is not None, "checked by _check_machine"
    return path


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
