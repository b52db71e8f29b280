"""The configuration files of a development Slurm. Pure text.

Source: slurm.conf(5), gres.conf(5), slurmdbd.conf(5). The timeouts are short, so that recovery
can be watched; `cred_expire` is also how long a requeued job waits (slurm.conf(5), AuthInfo).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.orchestrator.dev_cluster.shape import Shape

PARTITION: Final = "main"
CLUSTER: Final = "trimtab"
_MEMORY_MB: Final = 64_000
"""Of each node, as its jobs see it; the machine has less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Where slurmdbd and its database are."""

    port: int
    """Of slurmdbd."""
    database_port: int
    database_password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What a configuration depends on beside the cluster's shape."""

    folder: Path
    host: str
    """This machine's name without its domain."""
    is_loopback: bool
    """Whether that name is 127.0.0.1's. Slurm can listen on the address of its host's name or
    on all; then MUNGE's key keeps others out."""
    user: str
    """Who runs the daemons; jobs of others need root."""
    controller_port: int
    node_ports: Sequence[int]
    first_job_id: int
    """Job ids go on from here, so that clusters made later do not use them again."""
    accounting: Accounting | None = None

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"


def node_names(shape: Shape) -> tuple[str, ...]:
    """`n1`, `n2`, ..."""
    return tuple(f"n{index}" for index in range(1, shape.num_nodes + 1))


def slurm_conf(shape: Shape, places: Places) -> str:
    """slurm.conf, whole."""
    gres = f" Gres=gpu:{shape.gpus_per_node}" if shape.gpus_per_node else ""
    lines = [
        _SLURM_CONF.format(places=places, cluster=CLUSTER),
        *_accounting_lines(places),
        *_listening_lines(places),
        *(
            f"NodeName={name} NodeHostname={places.host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={shape.cpus_per_node} RealMemory={_MEMORY_MB}{gres} State=UNKNOWN"
            for name, port in zip(node_names(shape), places.node_ports, strict=True)
        ),
        f"PartitionName={PARTITION} Nodes=ALL Default=YES State=UP",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(shape: Shape, devices: Sequence[Path]) -> str:
    """gres.conf, whole; empty without GPUs."""
    names = ",".join(node_names(shape))
    return "".join(f"NodeName={names} Name=gpu File={device}\n" for device in devices)


def slurmdbd_conf(places: Places, accounting: Accounting) -> str:
    """slurmdbd.conf, whole; it holds a password."""
    lines = [
        _SLURMDBD_CONF.format(places=places, accounting=accounting),
        *_listening_lines(places),
    ]
    return "\n".join(lines) + "\n"


def node_port(conf: str, node: str) -> int:
    """The port of a node's slurmd, from slurm.conf."""
    line = next(line for line in conf.splitlines() if line.startswith(f"NodeName={node} "))
    return int(dict(word.split("=", 1) for word in line.split())["Port"])


def read_accounting(conf: str) -> Accounting:
    """The inverse of `slurmdbd_conf`."""
    values = dict(line.partition("=")[::2] for line in conf.splitlines())
    return Accounting(
        port=int(values["DbdPort"]),
        database_port=int(values["StoragePort"]),
        database_password=values["StoragePass"],
    )


def _accounting_lines(places: Places) -> list[str]:
    if places.accounting is None:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={places.accounting.port}",
        # With MUNGE this is not a password, but where its daemon listens.
        f"AccountingStoragePass={places.munge_socket}",
        "AccountingStorageEnforce=associations,limits,qos",
        "AccountingStorageTRES=gres/gpu",
    ]


def _listening_lines(places: Places) -> list[str]:
    options = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    return [options] if places.is_loopback else []


_SLURM_CONF: Final = """\
ClusterName={cluster}
SlurmctldHost={places.host}(127.0.0.1)
SlurmctldPort={places.controller_port}
SlurmUser={places.user}
SlurmdUser={places.user}
AuthType=auth/munge
AuthInfo=socket={places.munge_socket},cred_expire=20
CredType=cred/munge
StateSaveLocation={places.folder}/state
SlurmdSpoolDir={places.folder}/spool/%n
SlurmctldPidFile={places.folder}/slurmctld.pid
SlurmdPidFile={places.folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=5,sched_interval=5
SlurmdParameters=config_overrides
MpiDefault=none
FirstJobId={places.first_job_id}
ReturnToService=2
SlurmdTimeout=15
KillWait=5
MinJobAge=300
MessageTimeout=10
JobRequeue=1
TreeWidth=65533
GresTypes=gpu"""

_SLURMDBD_CONF: Final = """\
AuthType=auth/munge
AuthInfo=socket={places.munge_socket}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting.port}
SlurmUser={places.user}
PidFile={places.folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={accounting.database_port}
StorageUser=slurm
StoragePass={accounting.database_password}
StorageLoc=slurm"""
