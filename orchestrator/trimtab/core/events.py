"""What happens in a run, and what the monitor asks for.

Events are facts in the past tense; each is one line in the run's database. An action is an
imperative with a reason. `time_s` is seconds since the Unix epoch on the clock of the process
that made the event.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.job import JobState
from trimtab.core.plan import StepPlan, TimePart
from trimtab.core.profile import StepProfile

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[str, ...] = get_args(Severity)

StepPartName = Literal[
    "data",
    "forward",
    "backward",
    "attention communication",
    "waiting",
    "gradient sync",
    "optimizer",
]
STEP_PARTS: tuple[str, ...] = get_args(StepPartName)
"""The parts a rank's step is made of; they add up to its `step_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted(Event):
    """The ranks of a job are about to be started, the first time or again."""

    attempt: int
    """1 for the first start; one more for each resume."""
    num_ranks: int
    layout: str
    nodes: tuple[str, ...] = ()
    """The nodes in the order of their ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(Event):
    """No rank of an attempt runs any more."""

    attempt: int
    reason: str
    """Why it ended."""
    decision: str
    """What happens next, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFound(Event):
    """An agent has reported from a node: what is really there."""

    node: str
    host: str
    address: str
    num_cores: int
    num_gpus: int
    gpu: str
    """Device name, empty where there is none."""
    interfaces: tuple[str, ...]
    """Network interfaces that are up, as `eth0 10.0.0.4`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost(Event):
    """A node cannot be used any more."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFrozen(Event):
    """A rank's process does not run although it lives: stopped by a signal or a debugger."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStarted(Event):
    """A rank has joined its process group and built its model."""

    rank: int
    host: str
    pid: int
    device: str
    peak_flop_per_s: float | None
    """Dense peak of the device at the job's precision; None where it is unknown."""
    peak_note: str
    """Where the peak comes from, or why it is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProgressed(Event):
    """A heartbeat: what the rank is doing now."""

    rank: int
    step: int
    doing: str
    """A step part, `starting`, `checkpoint` or `evaluation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlanned(Event):
    """The plan of a step, as every rank received it."""

    step: int
    plan: StepPlan
    lengths: tuple[int, ...]
    """Length of every sequence of the batch, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoefficientsRefined(Event):
    """The costs that plans rest on from a step on, refined by measured groups."""

    step: int
    """The first step planned with them."""
    profile: StepProfile
    num_groups: int
    """Groups that they rest on."""
    error_before: float
    """Median of |predicted - measured| / measured over those groups, by the costs before."""
    error_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished(Event):
    """One rank's step."""

    step: int
    """From 1."""
    rank: int
    step_s: float
    parts: tuple[TimePart, ...]
    """In the order of `STEP_PARTS`; they add up to `step_s`."""
    num_tokens: int
    """Tokens this rank computed, its share of each group's."""
    waves_s: tuple[float, ...] = ()
    """Forward and backward of each wave of the plan; 0 where the rank had no group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSummarized(Event):
    """What is the same on all ranks; sent once, by rank 0."""

    step: int
    loss: float
    """Mean over the tokens of the global batch, in nats."""
    num_tokens: int
    """Tokens of the global batch."""
    model_flops: float
    """Model FLOPs of the step (`core.model.MFU_FORMULA`)."""
    step_s: float
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFinished(Event):
    """The loss on held-out documents, a mean over their tokens, in nats."""

    step: int
    loss: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """A whole checkpoint is on disk and named."""

    step: int
    path: str
    seconds: float
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed(Event):
    """Training goes on from a checkpoint."""

    step: int
    """Last finished step in it."""
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSampled(Event):
    """NVML's view of one GPU."""

    host: str
    index: int
    name: str
    utilization_fraction: float
    memory_used_bytes: int
    power_w: float
    temperature_c: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert(Event):
    """Something a person should know."""

    severity: Severity
    message: str
    rank: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        checks.one_of("alert.severity", self.severity, SEVERITIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExited(Event):
    """A rank's process has ended."""

    rank: int
    exit_code: int | None
    """None when a signal ended it."""
    signal: str | None
    """`SIGKILL`, say."""
    last_words: str
    """The last lines of the rank's log, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(Event):
    """The job has reached a final state."""

    state: JobState
    reason: str


AnyEvent = (
    AttemptStarted
    | AttemptEnded
    | NodeFound
    | NodeLost
    | RankFrozen
    | RankStarted
    | RankProgressed
    | StepPlanned
    | CoefficientsRefined
    | StepFinished
    | StepSummarized
    | EvaluationFinished
    | CheckpointSaved
    | RunResumed
    | GpuSampled
    | Alert
    | RankExited
    | JobFinished
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAttempt:
    """End every rank of this attempt; the supervisor decides what comes next."""

    reason: str
    """Why, in words a person on call can read."""
    restartable: bool
    """False: the failure would repeat."""
    node: str | None = None
    """The node to blame, where that is known."""
    rank: int | None = None
    """The rank to blame, where that is known."""
