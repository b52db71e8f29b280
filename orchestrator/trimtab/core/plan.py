"""Decisions: the layout of a job, what it is forecast to cost, and the plan of one step."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from trimtab.core import checks
from trimtab.core.certificate import BoundCertificate
from trimtab.core.cluster import Precision
from trimtab.core.communicators import CommunicatorSettings
from trimtab.core.errors import InputError
from trimtab.core.model import mfu

Recompute = Literal["none", "selective", "full"]
RECOMPUTES: tuple[str, ...] = get_args(Recompute)

PipelineSchedule = Literal["1f1b", "zb-h1", "zb-h2", "dualpipe"]
PIPELINE_SCHEDULES: tuple[str, ...] = get_args(PipelineSchedule)
"""`1f1b` interleaves with vpp > 1; see `trimtab.planners.timeline`."""

Offload = Literal["none", "optimizer"]
OFFLOADS: tuple[str, ...] = get_args(Offload)

FitVerdict = Literal["fits", "tight", "oom"]
FIT_VERDICTS: tuple[str, ...] = get_args(FitVerdict)

PlanMethod = Literal["heuristic", "search", "uniform", "fallback", "probe"]
PLAN_METHODS: tuple[str, ...] = get_args(PlanMethod)

_MOST_SHOWN_WAVES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The degrees that are fixed while a job runs."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    vpp: int = 1
    micro_batch_seqs: int = 1
    recompute: Recompute = "none"
    zero: int = 1
    """ZeRO stage over the dp * cp ranks: 1 shards the optimizer, 2 gradients, 3 weights too."""
    sequence_parallel: bool = False
    """Megatron's flag: norms and dropout split over the tp ranks."""
    fused_attention: bool = True
    """Attention in one kernel that keeps no scores (FlashAttention, cuDNN)."""
    schedule: PipelineSchedule = "1f1b"
    stage_layers: tuple[int, ...] = ()
    """Layers of every stage; empty: as even as can be."""
    offload: Offload = "none"
    """`optimizer`: its states and its step are the host's (ZeRO-Offload, arXiv:2101.06840)."""

    def __post_init__(self) -> None:
        for field in ("tp", "pp", "dp", "cp", "ep", "vpp", "micro_batch_seqs"):
            checks.whole_number(f"layout.{field}", getattr(self, field))
        checks.whole_number("layout.zero", self.zero, at_least=0)
        if self.zero > 3:
            raise InputError(f"layout.zero: expected 0 to 3, got {self.zero}")
        checks.one_of("layout.recompute", self.recompute, RECOMPUTES)
        checks.one_of("layout.schedule", self.schedule, PIPELINE_SCHEDULES)
        checks.one_of("layout.offload", self.offload, OFFLOADS)
        for stage, layers in enumerate(self.stage_layers):
            checks.whole_number(f"layout.stage_layers[{stage}]", layers)
        if self.stage_layers and len(self.stage_layers) != self.pp:
            raise InputError(
                f"layout.stage_layers: expected one number for each of pp = {self.pp} stages, "
                f"got {len(self.stage_layers)}"
            )
        if self.vpp > 1 and (self.schedule != "1f1b" or len(set(self.stage_layers)) > 1):
            raise InputError(
                "layout.vpp: only the schedule 1f1b with equal stages interleaves; set vpp to 1"
            )

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def group_ranks(self) -> int:
        """The dp * cp ranks that sequence groups are formed over."""
        return self.dp * self.cp

    def __str__(self) -> str:
        degrees = {"tp": self.tp, "pp": self.pp, "dp": self.dp}
        optional = {"cp": self.cp, "ep": self.ep, "vpp": self.vpp}
        degrees |= {name: degree for name, degree in optional.items() if degree > 1}
        text = " ".join(f"{name}{degree}" for name, degree in degrees.items())
        if self.zero > 1:
            text += f" zero{self.zero}"
        if self.schedule != "1f1b":
            text += f" {self.schedule}"
        if self.offload != "none":
            text += f" offload {self.offload}"
        return f"{text} layers {runs_text(self.stage_layers)}" if self.stage_layers else text


def runs_text(values: Sequence[int]) -> str:
    """Equal neighbours together: (14, 14, 14, 10) is `3x14+10`.

    >>> runs_text((14, 14, 14, 10)), runs_text((26, 22))
    ('3x14+10', '26+22')
    """
    runs = [(value, len(list(run))) for value, run in itertools.groupby(values)]
    return "+".join(f"{count}x{value}" if count > 1 else str(value) for value, count in runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the ranks and the layers go."""

    rank_nodes: tuple[str, ...]
    """Node of every rank, by rank; ranks are numbered tp fastest, then cp, dp and pp."""
    stage_layers: tuple[int, ...]
    """Number of layers of every stage, by stage."""
    rank_gpus: tuple[int, ...] = ()
    """Which GPU of its node every rank has, by rank; empty: in turn."""

    def __post_init__(self) -> None:
        checks.not_empty("placement.rank_nodes", self.rank_nodes)
        checks.not_empty("placement.stage_layers", self.stage_layers)
        if self.rank_gpus and len(self.rank_gpus) != len(self.rank_nodes):
            raise InputError(
                f"placement.rank_gpus: expected one number for each of "
                f"{len(self.rank_nodes)} ranks, got {len(self.rank_gpus)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePart:
    """A named share of a time; the parts of a step add up to it."""

    name: str
    seconds: float

    def __post_init__(self) -> None:
        checks.not_empty("part.name", self.name)
        checks.not_negative(f"part {self.name}", self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Memory of the worst rank of a stage, in bytes."""

    stage: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    workspace_bytes: int
    capacity_bytes: int

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.workspace_bytes
        )

    @property
    def verdict(self) -> FitVerdict:
        """`tight` means over 92 % of the capacity: fragmentation may make it fail."""
        if self.total_bytes > self.capacity_bytes:
            return "oom"
        return "tight" if self.total_bytes > 0.92 * self.capacity_bytes else "fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one step of a layout is expected to cost."""

    step_s: float
    parts: tuple[TimePart, ...]
    num_tokens: int
    """Tokens of one step."""
    model_flops: float
    """Model FLOPs of one step (`core.model.MFU_FORMULA`)."""
    memory: tuple[StageMemory, ...]
    precision: Precision
    peak_flop_per_s: float | None
    """Dense peak of one GPU; None where it is unknown, and so is the MFU."""
    num_ranks: int
    bubble_fraction: float
    """Share of the step in which a stage waits for the pipeline to fill and drain."""
    evidence: str
    """What the constants rest on: the name of the rates, or of a measured profile."""
    recomputed_flops: float = 0.0
    """FLOPs of a step that are done twice, to spare memory."""
    low_s: float | None = None
    """A tenth of steps like this one were faster than that, by what the constants rest on."""
    high_s: float | None = None
    """A tenth were slower; both None: not known."""
    outside: str | None = None
    """Why the job is unlike all that the constants were fitted to; None: it is not."""

    def __post_init__(self) -> None:
        checks.positive("forecast.step_s", self.step_s)
        checks.whole_number("forecast.num_tokens", self.num_tokens)
        checks.fraction("forecast.bubble_fraction", self.bubble_fraction)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.step_s

    @property
    def mfu(self) -> float | None:
        if self.peak_flop_per_s is None:
            return None
        peak = self.num_ranks * self.peak_flop_per_s
        return mfu(self.model_flops, seconds=self.step_s, peak_flop_per_s=peak)

    @property
    def hfu(self) -> float | None:
        """Hardware FLOPs utilization: as the MFU, recompute counted."""
        if self.mfu is None:
            return None
        return self.mfu * (1 + self.recomputed_flops / self.model_flops)

    @property
    def verdict(self) -> FitVerdict:
        """The worst verdict of any stage."""
        return max((stage.verdict for stage in self.memory), key=FIT_VERDICTS.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastLayout:
    """A layout with its forecast."""

    layout: Layout
    forecast: Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedLayout:
    """A layout that cannot run, and the constraint that binds."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageIslands:
    """Where a stage of a plan over several islands is."""

    stage: int
    num_layers: int
    islands: tuple[str, ...]
    """More than one where its dp ranks are spread over them."""
    num_ranks: int
    micro_batch_s: float
    """Forward and backward, of its slowest GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandBaseline:
    """What a simpler rule makes of the same job."""

    name: str
    layout: Layout
    step_s: float
    is_tight: bool
    """Whether some GPU is filled beyond what the plan itself allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandsPlan:
    """What a plan over several islands knows besides its forecast."""

    stages: tuple[StageIslands, ...]
    lower_bound_s: float
    """No layout and no placement has a shorter step by the same forecast."""
    num_layouts: int
    """How many were looked at."""
    baselines: tuple[IslandBaseline, ...]

    def gap_fraction(self, step_s: float) -> float:
        """How far a step may be above the best one."""
        return step_s / self.lower_bound_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """The chosen layout of a job, the runners-up, and what was ruled out."""

    layout: Layout
    placement: Placement
    forecast: Forecast
    alternatives: tuple[ForecastLayout, ...]
    """Next best layouts, best first."""
    rejected: tuple[RejectedLayout, ...]
    reason: str
    islands: IslandsPlan | None = None
    """Of a cluster of several islands or kinds of GPUs."""
    communicators: tuple[CommunicatorSettings, ...] = ()
    """What the groups of ranks are told about their network; none: NCCL finds its own way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceGroup:
    """Ranks that share the attention of `sequences`, packed in this order."""

    ranks: tuple[int, ...]
    """Indices into the dp * cp ranks, ascending."""
    sequences: tuple[int, ...]
    """Indices into the batch."""

    def __post_init__(self) -> None:
        checks.not_empty("group.ranks", self.ranks)
        checks.not_empty("group.sequences", self.sequences)

    @property
    def degree(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Disjoint groups that run at once."""

    groups: tuple[SequenceGroup, ...]

    def __post_init__(self) -> None:
        ranks = [rank for group in self.groups for rank in group.ranks]
        if len(ranks) != len(set(ranks)):
            raise InputError("wave.groups: expected disjoint ranks, but a rank is used twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePath:
    """The stages one micro-batch visits, in order; today every path visits all of them."""

    stages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one step does within a layout."""

    waves: tuple[Wave, ...]
    paths: tuple[StagePath, ...]
    """One path for each wave."""
    step_s: float
    """Predicted time: the sum over waves of the slowest group, and the fixed time of a step."""
    lower_bound_s: float
    """No plan under the same costs can be shorter."""
    method: PlanMethod
    solve_s: float
    """Time it took to find the plan and its bound."""
    reason: str
    first_plan_s: float | None = None
    """Time it took to find a first plan, where a better one was searched for."""
    first_step_s: float | None = None
    """Predicted time of that plan."""
    certificate: BoundCertificate | None = None
    """Why no plan is shorter than `lower_bound_s`, where more than the area bound was asked."""

    def __post_init__(self) -> None:
        checks.not_empty("plan.waves", self.waves)
        checks.one_of("plan.method", self.method, PLAN_METHODS)

    @property
    def gap_fraction(self) -> float:
        """How far the plan may be above the best one."""
        return (self.step_s - self.lower_bound_s) / self.lower_bound_s

    @property
    def degrees(self) -> tuple[int, ...]:
        """The different group degrees in use, ascending."""
        return tuple(sorted({group.degree for wave in self.waves for group in wave.groups}))

    @property
    def groups_text(self) -> str:
        """The groups wave by wave, degree x count: `<4> <2x2> <2, 1x2>`; three waves at most.

        Source of the notation: FlexSP, arXiv:2412.01523, table 2.
        """
        shown = " ".join(_wave_text(wave) for wave in self.waves[:_MOST_SHOWN_WAVES])
        num_more = len(self.waves) - _MOST_SHOWN_WAVES
        return f"{shown} +{num_more} waves" if num_more > 0 else shown


def _wave_text(wave: Wave) -> str:
    counts = Counter(group.degree for group in wave.groups)
    return (
        "<"
        + ", ".join(
            str(degree) if count == 1 else f"{degree}x{count}"
            for degree, count in sorted(counts.items(), reverse=True)
        )
        + ">"
    )
