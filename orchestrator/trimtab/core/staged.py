"""A pipeline over uneven machines: who serves which stage, what that costs, and a step in it.

`trimtab.planners.staged.staged_costs` fills a `StagedLayout` from a cluster and a model; it is
fixed while the layout is. A `StagedPlan` is one step: micro-batches, each a sequence group
with a degree, a stage path and a block of ranks at every stage that it visits.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePathSpec:
    """How much of a batch may leave out which stage: a budget, for the sake of quality."""

    skip_fractions: tuple[float, ...] = ()
    """Share of the tokens that leaves out each stage; empty: none leaves out any."""
    skip_tolerance: float = 0.01
    """How far off that share may be in one step."""

    def __post_init__(self) -> None:
        checks.fraction("stage_paths.skip_tolerance", self.skip_tolerance)
        for stage, fraction in enumerate(self.skip_fractions):
            checks.fraction_below_one(f"stage_paths.skip_fractions[{stage}]", fraction)

    def check(self, num_stages: int) -> None:
        """Raise unless the fractions are of so many stages and can be kept.

        Raises:
            InputError: There are more or fewer, or the first or the last would be left out.
        """
        field = "stage_paths.skip_fractions"
        check_skip_fractions(field, self.skip_fractions, num_stages)


StagedMethod = Literal["apart", "first", "search"]
STAGED_METHODS: tuple[str, ...] = get_args(StagedMethod)


@dataclass(frozen=True, slots=True, kw_only=True)
class DegreeCost:
    """What a token costs a stage replica in groups of `degree` ranks."""

    degree: int
    token_s: float
    """Rank-seconds a token, forward and backward: products and all-to-all."""

    def __post_init__(self) -> None:
        checks.whole_number("degree", self.degree)
        checks.positive(f"token_s of degree {self.degree}", self.token_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReplica:
    """Equal nodes of one island that serve one stage together.

    A micro-batch of degree d with lengths s takes d of the ranks for
    `fixed_s + sum(quadratic_s s^2 + token_s s) / d` seconds, `forward_fraction` of it forward.
    """

    name: str
    stage: int
    node: str
    """Name of the nodes' `NodeSpec`."""
    num_nodes: int
    num_ranks: int
    """Each `tp` GPUs."""
    quadratic_s: float
    """Rank-seconds a token^2."""
    degree_costs: tuple[DegreeCost, ...]
    fixed_s: float
    """Of a micro-batch, forward and backward."""
    token_cap: int
    """Most tokens one rank holds, of all micro-batches between forward and backward."""

    def __post_init__(self) -> None:
        checks.not_empty("replica.name", self.name)
        checks.whole_number("replica.stage", self.stage, at_least=0)
        checks.whole_number("replica.num_ranks", self.num_ranks)
        checks.not_negative("replica.quadratic_s", self.quadratic_s)
        checks.not_negative("replica.fixed_s", self.fixed_s)
        checks.whole_number("replica.token_cap", self.token_cap)
        checks.not_empty("replica.degree_costs", self.degree_costs)
        degrees = [cost.degree for cost in self.degree_costs]
        if sorted(set(degrees)) != degrees or degrees[-1] > self.num_ranks:
            raise InputError(
                f"replica.degree_costs: expected each degree once, ascending, at most "
                f"{self.num_ranks}, got {degrees}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What messages between replicas share, in one direction: an island's link or NICs."""

    name: str
    bytes_per_s: float

    def __post_init__(self) -> None:
        checks.positive("channel.bytes_per_s", self.bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one replica's micro-batches reach another's ranks.

    A message of q bytes of a group of degree d keeps its channel for q / (its bandwidth), and
    is there `latency_s + q / min(bandwidth, d rank_bytes_per_s)` after it has begun.
    """

    source: int
    target: int
    channel: int
    latency_s: float
    rank_bytes_per_s: float

    def __post_init__(self) -> None:
        checks.not_negative("route.latency_s", self.latency_s)
        checks.positive("route.rank_bytes_per_s", self.rank_bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedLayout:
    """Stages, their replicas and the routes between, with all that a step costs on them."""

    stage_layers: tuple[int, ...]
    replicas: tuple[StageReplica, ...]
    """By stage; every stage has at least one."""
    channels: tuple[Channel, ...]
    routes: tuple[Route, ...]
    token_bytes: float
    """What one token sends from stage to stage, in each direction."""
    closing_s: tuple[float, ...]
    """Of every stage: gradient reduction and optimizer, after its last backward."""
    forward_fraction: float
    """Share of a micro-batch's time that its forward pass takes."""
    skip_fractions: tuple[float, ...] = ()
    """Share of the batch's tokens that leaves out each stage; empty: no stage is left out."""
    skip_tolerance: float = 0.01
    """How far off that share may be."""

    def __post_init__(self) -> None:
        checks.not_empty("stage_layers", self.stage_layers)
        stages = [replica.stage for replica in self.replicas]
        if stages != sorted(stages) or set(stages) != set(range(self.num_stages)):
            raise InputError(
                f"replicas: expected at least one of each of {self.num_stages} stages, in "
                f"their order, got stages {stages}"
            )
        if len(self.closing_s) != self.num_stages:
            raise InputError(
                f"closing_s: expected one for each of {self.num_stages} stages, got "
                f"{len(self.closing_s)}"
            )
        checks.fraction("forward_fraction", self.forward_fraction)
        checks.fraction("skip_tolerance", self.skip_tolerance)
        check_skip_fractions("skip_fractions", self.skip_fractions, self.num_stages)
        most = max(self.skip_fractions, default=0.0)
        if most + self.skip_tolerance >= 1:
            raise InputError(
                f"skip_fractions: expected less than 1 with the tolerance of "
                f"{self.skip_tolerance:g}, got {most:g}"
            )

    @property
    def num_stages(self) -> int:
        return len(self.stage_layers)

    @property
    def num_ranks(self) -> int:
        return sum(replica.num_ranks for replica in self.replicas)

    def skip_fraction(self, stage: int) -> float:
        """Share of the tokens that leaves out `stage`."""
        return self.skip_fractions[stage] if self.skip_fractions else 0.0

    def of_stage(self, stage: int) -> tuple[int, ...]:
        """Indices of the replicas of a stage."""
        return tuple(v for v, replica in enumerate(self.replicas) if replica.stage == stage)


def check_skip_fractions(field: str, fractions: tuple[float, ...], num_stages: int) -> None:
    """Raise unless there is one for each stage, 0 for the first and the last.

    Source: SkipPipe, arXiv:2502.19913: the first and the last stage are never left out.
    """
    if not fractions:
        return
    if len(fractions) != num_stages:
        raise InputError(
            f"{field}: expected one number for each of {num_stages} stages, got "
            f"{len(fractions)}"
        )
    for stage, fraction in enumerate(fractions):
        checks.fraction_below_one(f"{field}[{stage}]", fraction)
        if fraction and stage in {0, num_stages - 1}:
            raise InputError(
                f"{field}[{stage}]: the first and the last stage are never left out, expected "
                f"0, got {fraction:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageVisit:
    """Where and when a micro-batch is at a stage."""

    replica: int
    first_rank: int
    """Its block is this rank of the replica and the next ones, as many as its degree."""
    forward_start_s: float
    backward_start_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A sequence group on its way through the stages, with the same degree at each."""

    degree: int
    sequences: tuple[int, ...]
    """Indices into the batch."""
    visits: tuple[StageVisit, ...]
    """In the order of the stages; one that is not there is left out."""

    def __post_init__(self) -> None:
        checks.whole_number("micro_batch.degree", self.degree)
        checks.not_empty("micro_batch.sequences", self.sequences)
        checks.not_empty("micro_batch.visits", self.visits)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPrices:
    """Duals of the joint step program, none below zero; zero where nothing is said.

    `trimtab.planners.staged.staged_bounds.priced_bound_s` says what they prove.
    """

    replicas: tuple[float, ...]
    """Of a rank-second of every replica."""
    channels: tuple[float, ...]
    """Of a byte through every channel."""
    longest: float
    """Of a second that the longest sequence takes through the pipeline."""
    held: tuple[float, ...]
    """Of a token that a rank of each stage holds for a second."""
    skipped_more: tuple[float, ...]
    """Of a token that leaves out a stage beyond the most allowed."""
    skipped_less: tuple[float, ...]
    """Of a token that is short of the fewest."""

    def __post_init__(self) -> None:
        checks.not_negative("prices.longest", self.longest)
        for field in ("replicas", "channels", "held", "skipped_more", "skipped_less"):
            for index, price in enumerate(getattr(self, field)):
                checks.not_negative(f"prices.{field}[{index}]", price)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPlan:
    """What one step does within a staged layout."""

    micro_batches: tuple[MicroBatch, ...]
    """In the order of their priority."""
    step_s: float
    """Simulated, to the end of the last stage's gradient reduction and optimizer."""
    lower_bound_s: float
    """No plan on the same layout can be shorter."""
    prices: StagedPrices
    method: StagedMethod
    reason: str
    solve_s: float
    first_plan_s: float
    first_step_s: float

    def __post_init__(self) -> None:
        checks.not_empty("plan.micro_batches", self.micro_batches)
        checks.one_of("plan.method", self.method, STAGED_METHODS)

    @property
    def gap_fraction(self) -> float:
        """How far the plan may be above the best one."""
        return (self.step_s - self.lower_bound_s) / self.lower_bound_s
