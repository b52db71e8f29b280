"""A job: what the user asks for, the request that is submitted, the handle that names it."""

import enum
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.cluster import PRECISIONS, ClusterSpec, Precision
from trimtab.core.communicators import RankNetwork
from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import StepProfile
from trimtab.core.scheduling import RayOptions, RestartSpec, SlurmOptions, StageOptions
from trimtab.core.staged import StagePathSpec

DataFormat = Literal["auto", "text", "jsonl", "megatron"]
DATA_FORMATS: tuple[str, ...] = get_args(DataFormat)

LongDocuments = Literal["split", "truncate", "drop"]
LONG_DOCUMENTS: tuple[str, ...] = get_args(LongDocuments)

Decay = Literal["constant", "linear", "cosine"]
DECAYS: tuple[str, ...] = get_args(Decay)

Grouping = Literal["planned", "uniform", "probe"]
GROUPINGS: tuple[str, ...] = get_args(Grouping)

STDLIB_SOURCE = "stdlib:"
"""The source path that stands for the running interpreter's own standard library."""

BYTE_TOKENIZER = "byte"
"""The tokenizer to which every byte is a token."""

SchedulerName = Literal["local", "slurm", "ray"]
SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """One set of documents; a document is a file, a JSONL line or a Megatron index entry."""

    path: str
    """A file, a folder, or `stdlib:` for the sources of Python's standard library."""
    weight: float = 1.0
    """Share of the documents drawn, relative to the other sources."""
    format: DataFormat = "auto"
    pattern: str = "**/*"
    """Which files of a folder to read, as a glob."""
    text_key: str = "text"
    """Which field of a JSONL line holds the text."""

    def __post_init__(self) -> None:
        checks.not_empty("data.sources.path", self.path)
        checks.positive("data.sources.weight", self.weight)
        checks.one_of("data.sources.format", self.format, DATA_FORMATS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The documents to train on and how they become sequences."""

    sources: tuple[DataSource, ...]
    tokenizer: str = BYTE_TOKENIZER
    """`byte`, or the path of a Hugging Face `tokenizer.json` or of the folder that holds it."""
    max_seq_tokens: int = 8_192
    long_documents: LongDocuments = "split"
    """What happens to a document longer than `max_seq_tokens`."""
    held_out_fraction: float = 0.02
    """Share of the documents kept for evaluation."""

    def __post_init__(self) -> None:
        checks.not_empty("data.sources", self.sources)
        checks.not_empty("data.tokenizer", self.tokenizer)
        checks.whole_number("data.max_seq_tokens", self.max_seq_tokens)
        checks.one_of("data.long_documents", self.long_documents, LONG_DOCUMENTS)
        checks.fraction_below_one("data.held_out_fraction", self.held_out_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """The optimization: steps, batch, AdamW and its schedule."""

    num_steps: int
    global_batch_seqs: int
    learning_rate: float = 3e-4
    min_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay: Decay = "cosine"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0
    precision: Precision = "bf16"
    seed: int = 1234
    evaluate_every_steps: int = 0
    """0: never."""
    evaluation_seqs: int = 32

    def __post_init__(self) -> None:
        checks.whole_number("training.num_steps", self.num_steps)
        checks.whole_number("training.global_batch_seqs", self.global_batch_seqs)
        checks.positive("training.learning_rate", self.learning_rate)
        checks.not_negative("training.min_learning_rate", self.min_learning_rate)
        checks.whole_number("training.warmup_steps", self.warmup_steps, at_least=0)
        checks.one_of("training.decay", self.decay, DECAYS)
        checks.not_negative("training.weight_decay", self.weight_decay)
        checks.fraction_below_one("training.beta1", self.beta1)
        checks.fraction_below_one("training.beta2", self.beta2)
        checks.not_negative("training.gradient_clip", self.gradient_clip)
        checks.one_of("training.precision", self.precision, PRECISIONS)
        checks.whole_number("training.seed", self.seed, at_least=0)
        checks.whole_number(
            "training.evaluate_every_steps", self.evaluate_every_steps, at_least=0
        )
        checks.whole_number("training.evaluation_seqs", self.evaluation_seqs)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlanningSpec:
    """How each step's sequence groups are chosen."""

    grouping: Grouping = "planned"
    """`uniform`: one degree for all; `probe`: degrees in turn, for their costs to be fitted."""
    uniform_degree: int | None = None
    """The one degree of `grouping: uniform`; None: the smallest that holds every sequence."""
    token_cap: int | None = None
    """Most tokens one rank holds in a wave; None: from the profile or the memory forecast."""
    lookahead_steps: int = 4
    """How many steps ahead the planning process works."""
    deadline_s: float = 5.0
    """How long a step waits for its plan before it falls back to the fast one."""
    time_limit_s: float = 1.0
    """How long the planning process improves a plan; 0: the first plan is taken."""
    refine_every_steps: int = 20
    """How often measured group times refine the coefficients of coming plans; 0: never."""

    def __post_init__(self) -> None:
        checks.one_of("step_planning.grouping", self.grouping, GROUPINGS)
        if self.uniform_degree is not None:
            checks.whole_number("step_planning.uniform_degree", self.uniform_degree)
        if self.token_cap is not None:
            checks.whole_number("step_planning.token_cap", self.token_cap)
        checks.whole_number("step_planning.lookahead_steps", self.lookahead_steps)
        checks.not_negative("step_planning.deadline_s", self.deadline_s)
        checks.not_negative("step_planning.time_limit_s", self.time_limit_s)
        checks.whole_number(
            "step_planning.refine_every_steps", self.refine_every_steps, at_least=0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """When to save, how many to keep, and what to start from."""

    every_steps: int = 0
    """0: only at the end and on a stop signal."""
    keep: int = 2
    start_from: str | None = None
    """A Hugging Face folder (Llama-type safetensors) whose weights training starts from."""
    address: str | None = None
    """Where checkpoints are kept besides the run directory, in a folder named after the run: an
    fsspec address such as `s3://bucket/folder`. Needed where nodes share no file system."""

    def __post_init__(self) -> None:
        checks.whole_number("checkpoint.every_steps", self.every_steps, at_least=0)
        checks.whole_number("checkpoint.keep", self.keep)
        if self.address is not None:
            checks.address("checkpoint.address", self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySpec:
    """Where measurements go besides the run directory."""

    wandb_project: str | None = None
    """None: no Weights & Biases. `WANDB_MODE=offline` is honoured."""
    gpu_sample_s: float = 10.0
    """Period of the NVML samples on machines with an NVIDIA driver."""
    silent_rank_s: float = 60.0
    """A rank that sends nothing for this long is taken as hung; ranks that report and do not
    move, after ten times as long (sixty times while they start, save or evaluate)."""

    def __post_init__(self) -> None:
        checks.positive("telemetry.gpu_sample_s", self.gpu_sample_s)
        checks.positive("telemetry.silent_rank_s", self.silent_rank_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Everything a job file says, resolved: no path in it is relative."""

    name: str
    model: ModelSpec
    cluster: ClusterSpec
    num_ranks: int
    """How many GPUs (or CPU processes) of the cluster to use."""
    num_nodes: int | None = None
    """How many machines share the ranks evenly; None: as few as the cluster's nodes allow."""
    data: DataSpec
    training: TrainingSpec
    layout: Layout | None = None
    """Kept as it stands. None: `plan` chooses, `submit` runs dp = `num_ranks`."""
    profile: StepProfile | None = None
    """Measured or published step coefficients; None: the analytic ones."""
    step_planning: StepPlanningSpec = StepPlanningSpec()
    stage_paths: StagePathSpec = StagePathSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    telemetry: TelemetrySpec = TelemetrySpec()
    restart: RestartSpec = RestartSpec()
    slurm: SlurmOptions = SlurmOptions()
    ray: RayOptions = RayOptions()
    stage: StageOptions = StageOptions()

    def __post_init__(self) -> None:
        checks.not_empty("name", self.name)
        _check_ranks(self.num_ranks, self.num_nodes)
        if self.num_ranks > self.cluster.num_gpus:
            raise InputError(
                f"num_ranks: the cluster {self.cluster.name!r} has "
                f"{self.cluster.num_gpus} devices, got {self.num_ranks}"
            )
        if self.layout is not None and self.layout.num_ranks != self.num_ranks:
            raise InputError(
                f"layout: {self.layout} uses {self.layout.num_ranks} ranks, "
                f"but num_ranks = {self.num_ranks}"
            )
        self.stage_paths.check(1 if self.layout is None else self.layout.pp)
        if self.profile is not None:
            _check_profile(self.profile, self.model)
        longest, known = self.data.max_seq_tokens, self.model.max_seq_tokens
        if self.model.positions == "learned" and longest > known:
            raise InputError(
                f"data.max_seq_tokens: the model {self.model.name!r} has learned positions for "
                f"{known} tokens, got {longest}; set data.max_seq_tokens={known} or fewer"
            )
        if self.training.evaluate_every_steps and not self.data.held_out_fraction:
            raise InputError(
                "data.held_out_fraction: evaluation needs held-out documents, got 0; raise it, "
                "or set training.evaluate_every_steps: 0"
            )

    @property
    def needs_gpus(self) -> bool:
        """Whether a rank is a GPU; otherwise it is a process on a CPU."""
        return not all(node.gpu.is_cpu for node in self.cluster.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptSpec:
    """A user's own training script, started and supervised like a job of ours.

    It finds what `torchrun` would give it in its environment: `RANK`, `WORLD_SIZE`,
    `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, `GROUP_RANK`, `MASTER_ADDR`, `MASTER_PORT`.
    """

    name: str
    argv: tuple[str, ...]
    """The command line of every rank; no shell reads it."""
    folder: str
    """Where the ranks are started: the working directory of the submission."""
    num_ranks: int
    num_nodes: int | None = None
    needs_gpus: bool = False
    """Whether every rank takes one GPU."""
    telemetry: TelemetrySpec = TelemetrySpec()
    restart: RestartSpec = RestartSpec()
    slurm: SlurmOptions = SlurmOptions()
    ray: RayOptions = RayOptions()
    stage: StageOptions = StageOptions()

    def __post_init__(self) -> None:
        checks.not_empty("name", self.name)
        checks.not_empty("script", self.argv)
        _check_ranks(self.num_ranks, self.num_nodes)


def _check_ranks(num_ranks: int, num_nodes: int | None) -> None:
    checks.whole_number("num_ranks", num_ranks)
    if num_nodes is None:
        return
    checks.whole_number("num_nodes", num_nodes)
    if num_ranks % num_nodes:
        raise InputError(
            f"num_nodes: {num_ranks} ranks cannot be shared evenly by {num_nodes} nodes; "
            "choose a divisor of num_ranks"
        )


def _check_profile(profile: StepProfile, model: ModelSpec) -> None:
    """Raise where a profile says that it was measured for a model of another size."""
    for name, measured, ours in (
        ("hidden", profile.hidden, model.hidden),
        ("num_layers", profile.num_layers, model.num_layers),
    ):
        if measured and measured != ours:
            raise InputError(
                f"profile: {profile.name!r} was measured for {name} = {measured}, but the "
                f"model {model.name!r} has {ours}; name a profile of this model, or none"
            )


class JobState(enum.Enum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    """A submitted job's name: `local://` and its run's id, or `slurm://1234`, or `ray://ID`."""

    scheduler: SchedulerName
    job_id: str

    def __post_init__(self) -> None:
        checks.one_of("handle scheduler", self.scheduler, SCHEDULERS)
        checks.not_empty("handle job id", self.job_id)
        if "/" in self.job_id or self.job_id.startswith("."):
            raise InputError(f"handle: {self.job_id!r} is not a job id; see `trimtab list`")

    def __str__(self) -> str:
        return f"{self.scheduler}://{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> "JobHandle":
        """Read `local://ID`, `slurm://ID` or `ray://ID`.

        Raises:
            InputError: `text` has another form, or an unknown scheduler.
        """
        scheduler, separator, job_id = text.partition("://")
        if not separator:
            raise InputError(
                f"handle: expected the form local://ID, slurm://ID or ray://ID, got {text!r}"
            )
        return cls(scheduler=scheduler, job_id=job_id)  # type: ignore[arg-type]  # checked there


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvVar:
    """One environment variable of a process; never a secret."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `--dry-run` shows and what is submitted, byte for byte.

    Secrets are not part of it: processes inherit those (`WANDB_API_KEY`, `HF_TOKEN`) from the
    submitting shell's environment.
    """

    scheduler: SchedulerName
    run_dir: str
    """Its last part is the run's id."""
    argv: tuple[str, ...]
    """Command line of every rank; no shell ever reads it."""
    environment: tuple[EnvVar, ...]
    """Variables that all ranks share; each rank's own are added when it starts."""
    num_ranks: int
    num_nodes: int
    """Ranks are numbered node by node, `num_ranks / num_nodes` on each."""
    job: JobSpec | ScriptSpec
    layout: Layout | None
    """The layout that runs: the job's own, or dp = `num_ranks`. None: a script has its own."""
    networks: tuple[RankNetwork, ...] = ()
    """What the ranks are told about their NICs; none: they find their own way."""
    submission: str = ""
    """What the scheduler is given: an sbatch script, or a Ray job as JSON; local: nothing."""

    @property
    def run_id(self) -> str:
        return PurePath(self.run_dir).name

    @property
    def ranks_per_node(self) -> int:
        return self.num_ranks // self.num_nodes

    @property
    def training(self) -> tuple[JobSpec, Layout]:
        """The training job and its layout.

        Raises:
            InputError: The request runs a script of the user's.
        """
        if isinstance(self.job, ScriptSpec) or self.layout is None:
            raise InputError(
                f"{self.run_id} runs a script of its own, whose steps Trimtab does not know"
            )
        return self.job, self.layout
