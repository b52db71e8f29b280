"""A real Slurm on this machine: slurmctld and one slurmd for each node.

Needs Debian's packages slurm-wlm and munge (or like ones). Nothing of the machine's own Slurm
or MUNGE is touched: the cluster has its own ports, key, socket and configuration, all in one
folder. Root is not needed: daemons and jobs are the user's own.
"""

import contextlib
import os
import pwd
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError
from trimtab.launch.slurm.daemon import is_listening
from trimtab.orchestrator.dev_cluster import (
    node_processes,
    shape,
    slurm_accounting,
    slurm_config,
)
from trimtab.orchestrator.dev_cluster.commands import check_installed, program, run
from trimtab.orchestrator.dev_cluster.daemons import Daemons, free_ports
from trimtab.orchestrator.dev_cluster.slurm_config import Accounting, Places

_PROGRAMS: Final = ("slurmctld", "slurmd", "munged", "munge", "sinfo", "scontrol", "scancel")
_UP_TIMEOUT_S: Final = 30.0
_FINE: Final = ("idle", "mixed", "allocated", "completing")
_SAFE_FOLDER: Final = re.compile(r"/[A-Za-z0-9_./+@-]{1,69}")
"""Files of Slurm take a path as it stands, and paths of sockets end after 107 characters."""
_JOB_IDS_FROM_S: Final = 1_767_225_600
"""The beginning of 2026: ids start at the minutes since then."""


def _silent(_what: str) -> None:
    pass


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

    def start(
        self,
        *,
        num_nodes: int,
        gpus_per_node: int,
        cpus_per_node: int,
        accounting: bool = False,
        tell: Callable[[str], None] = _silent,
    ) -> None:
        """Make the cluster if it is not there, and start what does not run.

        Args:
            num_nodes: They are called `n1`, `n2`, ...
            gpus_per_node: Fake ones.
            cpus_per_node: As Slurm is told.
            accounting: With slurmdbd and a database; jobs of unknown accounts are refused.
            tell: Is told what is being done.

        Raises:
            InputError: Something is not installed; the folder holds something else, or a
                cluster of another shape.
            JobFailedError: A daemon does not come up; the message holds its last words.
        """
        self._check_machine(accounting=accounting)
        wanted = shape.Shape(
            kind="slurm",
            num_nodes=num_nodes,
            gpus_per_node=gpus_per_node,
            cpus_per_node=cpus_per_node,
            accounting=accounting,
        )
        shape.claim(self.folder, wanted)
        with shape.at_work(self.folder, "slurm"):
            if not self.config.exists():
                self._configure(wanted)
            daemons = Daemons(self.folder)
            self._start_munge(daemons)
            if accounting:
                self._start_accounting(daemons, tell)
            tell("starting slurmctld")
            if "slurmctld" not in daemons.alive:
                argv = [program("slurmctld"), "-D", "-f", str(self.config)]
                daemons.start("slurmctld", argv)
            daemons.await_answer(
                "slurmctld",
                lambda: run(["scontrol", "ping"], self.environment).returncode == 0,
                what="Slurm's controller",
                timeout_s=_UP_TIMEOUT_S,
            )
            for node in self.nodes:
                tell(f"starting {node}")
                self._start_slurmd(daemons, node)
            for node in self.nodes:
                self._await_node(daemons, node)

    def stop(self) -> None:
        """End the cluster's jobs and daemons, then remove its folder.

        Raises:
            InputError: There is no cluster in the folder.
        """
        with shape.at_work(self.folder, "slurm"):
            daemons = Daemons(self.folder)
            for node in self.nodes:
                daemons.kill(f"slurmd-{node}")  # it starts no process any more
                node_processes.kill_all(self._processes_of(node))
            for name in reversed(daemons.alive):
                daemons.end(name)
            shape.remove(self.folder)

    def kill_node(self, node: str, *, hard: bool = False) -> None:
        """Kill a node's slurmd; with `hard` also all that jobs run there, as a power cut does.

        Raises:
            InputError: There is no such node, or it does not run.
        """
        with shape.at_work(self.folder, "slurm"):
            self._check_node(node)
            daemons = Daemons(self.folder)
            if daemons.pid(f"slurmd-{node}") is None and not hard:
                raise InputError(
                    f"node: {node} does not run; `trimtab dev-cluster slurm start-node {node}` "
                    "starts it"
                )
            daemons.kill(f"slurmd-{node}")
            if hard:
                node_processes.kill_all(self._processes_of(node))

    def start_node(self, node: str) -> None:
        """Start a killed node's slurmd again; Slurm takes the node back by itself.

        Raises:
            InputError: There is no such node, or the cluster does not run.
            JobFailedError: It does not come up; the message holds its last words.
        """
        with shape.at_work(self.folder, "slurm"):
            self._check_node(node)
            if not self.is_running:
                raise InputError(
                    f"--folder: the cluster in {self.folder} does not run; "
                    "`trimtab dev-cluster slurm start` starts it"
                )
            daemons = Daemons(self.folder)
            self._start_slurmd(daemons, node)
            self._await_node(daemons, node)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes; none where there is no cluster in the folder."""
        made = shape.made_shape(self.folder)
        return () if made is None else slurm_config.node_names(made)

    def states(self) -> dict[str, str]:
        """Slurm's word for each node's state; nothing while slurmctld does not answer."""
        answer = run(["sinfo", "-N", "-h", "-o", "%N %T"], self.environment)
        return dict(line.split() for line in answer.stdout.splitlines() if " " in line)

    @property
    def is_running(self) -> bool:
        """Whether its slurmctld lives."""
        return "slurmctld" in Daemons(self.folder).alive

    def _start_munge(self, daemons: Daemons) -> None:
        folder = self.folder / "munge"
        if "munged" not in daemons.alive:
            # --force: the socket may lie below a folder that only its owner may enter.
            files = [f"--{name}-file={folder / name}" for name in ("key", "pid", "log", "seed")]
            place = f"--socket={folder / 'socket'}"
            daemons.start(
                "munged", [program("munged"), "--foreground", "--force", place, *files]
            )
        question = ["munge", "--no-input", f"--socket={folder / 'socket'}"]
        daemons.await_answer(
            "munged",
            lambda: run(question).returncode == 0,
            what="MUNGE",
            timeout_s=_UP_TIMEOUT_S,
        )

    def _start_accounting(self, daemons: Daemons, tell: Callable[[str], None]) -> None:
        slurm_accounting.start(
            self.folder, daemons, user=_user(), environment=self.environment, tell=tell
        )

    def _start_slurmd(self, daemons: Daemons, node: str) -> None:
        if f"slurmd-{node}" not in daemons.alive:
            argv = [program("slurmd"), "-D", "-N", node, "-f", str(self.config)]
            daemons.start(f"slurmd-{node}", argv)

    def _await_node(self, daemons: Daemons, node: str) -> None:
        """Wait for slurmd and for slurmctld, which may not even have noticed its end."""
        port = slurm_config.node_port(self.config.read_text(), node)
        daemons.await_answer(
            f"slurmd-{node}",
            lambda: is_listening(port) and self.states().get(node) in _FINE,
            what=f"node {node}",
            timeout_s=_UP_TIMEOUT_S,
        )

    def _check_node(self, node: str) -> None:
        if node not in self.nodes:
            raise InputError(f"node: expected one of {', '.join(self.nodes)}, got {node!r}")

    def _processes_of(self, node: str) -> frozenset[int]:
        spool = self.folder / "spool" / node
        return node_processes.processes_of(spool, config=self.config, node=node)

    def _check_machine(self, *, accounting: bool) -> None:
        check_installed(_PROGRAMS, packages="slurm-wlm munge")
        if accounting:
            check_installed(slurm_accounting.PROGRAMS, packages="slurmdbd mariadb-server")
        if not _SAFE_FOLDER.fullmatch(str(self.folder)):
            raise InputError(
                f"--folder: Slurm takes at most 70 letters, digits and _ . / + @ - in it, got "
                f"{str(self.folder)!r}"
            )

    def _configure(self, wanted: shape.Shape) -> None:
        """Write all configuration; slurm.conf, by which it is found complete, last."""
        for name in ("etc", "state", "log", "munge", "gpus"):
            (self.folder / name).mkdir(exist_ok=True)
        for node in slurm_config.node_names(wanted):
            (self.folder / "spool" / node).mkdir(parents=True, exist_ok=True)
        _write_secret(self.folder / "munge" / "key", secrets.token_bytes(1024))
        ports = free_ports(wanted.num_nodes + 3)
        accounting = None
        if wanted.accounting:
            accounting = Accounting(
                port=ports[0], database_port=ports[1], database_password=secrets.token_hex(16)
            )
        host = socket.gethostname().partition(".")[0]
        places = Places(
            folder=self.folder,
            host=host,
            is_loopback=_is_loopback(host),
            user=_user(),
            controller_port=ports[2],
            node_ports=ports[3:],
            first_job_id=int(time.time() - _JOB_IDS_FROM_S) // 60,
            accounting=accounting,
        )
        if accounting is not None:
            text = slurm_config.slurmdbd_conf(places, accounting)
            _write_secret(self.folder / "etc" / "slurmdbd.conf", text.encode())
        devices = self._fake_gpus(wanted.gpus_per_node)
        etc = self.folder / "etc"
        (etc / "gres.conf").write_text(slurm_config.gres_conf(wanted, devices))
        draft = etc / "slurm.conf.draft"
        draft.write_text(slurm_config.slurm_conf(wanted, places))
        draft.replace(self.config)

    def _fake_gpus(self, count: int) -> list[Path]:
        """Device files of that many GPUs: Slurm sets CUDA_VISIBLE_DEVICES for such only."""
        devices = [self.folder / "gpus" / f"gpu{index}" for index in range(count)]
        for device in devices:
            with contextlib.suppress(FileExistsError):
                device.symlink_to(os.devnull)
        return devices


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(OSError):
        return socket.gethostbyname(host) == "127.0.0.1"
    return False


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
