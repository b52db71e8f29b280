"""Where and how a job runs: what the user asks of Slurm, Ray and of restarts."""

from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.errors import InputError

WhenShort = Literal["shrink", "requeue", "stop"]
WHEN_SHORT: tuple[str, ...] = get_args(WhenShort)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartSpec:
    """What happens when a rank or a node of the job dies."""

    max_restarts: int = 3
    """Restarts in a row that bring no new checkpoint before the job is given up."""
    backoff_s: float = 1.0
    """Pause before the second restart in a row, doubled for each further one; the first has
    none. Never more than a minute."""
    spare_nodes: int = 0
    """Nodes asked for beyond those the ranks need, to restart on at once (Slurm)."""
    warm_spares: bool = False
    """Keep a process with everything imported beside every rank: restarts save its imports,
    for about 0.5 GiB a rank."""
    when_short: WhenShort = "shrink"
    """When too few nodes are left: go on with fewer ranks, go back to the queue, or stop."""

    def __post_init__(self) -> None:
        checks.whole_number("restart.max_restarts", self.max_restarts, at_least=0)
        checks.not_negative("restart.backoff_s", self.backoff_s)
        checks.whole_number("restart.spare_nodes", self.spare_nodes, at_least=0)
        checks.one_of("restart.when_short", self.when_short, WHEN_SHORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """Options of sbatch under Slurm's own names, as text in Slurm's own forms.

    None: the option is not given. `nodes` is the job's `num_nodes`.

    Source: sbatch(1); the `container_*` options are those of pyxis.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    gres: str | None = None
    gpus_per_node: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    dependency: str | None = None
    signal: str | None = None
    """Warning before the time limit or preemption; None: `B:USR2@90`."""
    comment: str | None = None
    array: str | None = None
    container_image: str | None = None
    container_mounts: str | None = None
    container_name: str | None = None
    container_workdir: str | None = None
    args: tuple[str, ...] = ()
    """Further options as `name=value`, or `name` alone for a flag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """A job whose nodes share no files, neither with the submitting machine nor among them."""

    enabled: bool = False
    """Send along with the job what its nodes lack: Trimtab's own code, the request and the
    folder of a script."""
    python: str | None = None
    """The nodes' Python, which has the packages that ranks import; None: the path it has on
    the submitting machine."""
    address: str | None = None
    """Where the run's events and logs go in the end, into a folder named after the run; None:
    to `checkpoint.address`."""

    def __post_init__(self) -> None:
        if self.python is not None and not self.python.startswith("/"):
            raise InputError(f"stage.python: expected an absolute path, got {self.python!r}")
        if self.address is not None:
            checks.address("stage.address", self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """What a Ray job is submitted with.

    Source: Ray's Jobs API, `ray job submit`.
    """

    address: str | None = None
    """Of the Jobs API, as `http://127.0.0.1:8265`; None: `RAY_ADDRESS`."""
    working_dir: str | None = None
    """A folder that Ray copies to the cluster."""
    runtime_env_json: str | None = None
    submission_id: str | None = None
    resource: str | None = None
    """A custom resource of which every rank takes one; None: a GPU, or a CPU without GPUs."""
