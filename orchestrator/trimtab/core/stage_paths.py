"""Micro-batches on stage paths: the nodes and links they run on, and a schedule of them.

Nodes on uneven links hold pipeline stages; stage 0 (embedding, head and loss) is on the
origins. A micro-batch starts at its origin, visits some of the other stages, comes back for the
loss and runs backward over the same nodes in reverse.

Source of the setting: SkipPipe, arXiv:2502.19913.
"""

import math
from dataclasses import dataclass
from typing import Final

from trimtab.core import checks
from trimtab.core.errors import InputError, shown

MOST_NODES: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOrder:
    """How far a path may leave the order of the stages.

    A stage behind the furthest one so far is a swap; its distance is how far behind it is.
    Source of the defaults: gensyn-ai/skippipe at 7f20d8a.
    """

    max_swap_total_distance: int = 2
    max_swap_distance: int = 1
    max_swaps: int = 2
    max_stage_jump: int = 4
    """Stages a path may advance at once."""

    def __post_init__(self) -> None:
        for field in ("max_swap_total_distance", "max_swap_distance", "max_swaps"):
            checks.whole_number(field, getattr(self, field), at_least=0)
        checks.whole_number("max_stage_jump", self.max_stage_jump)

    def problem(self, stages: tuple[int, ...]) -> str | None:
        """What is wrong with a path of these stages, the origin's 0 first; None: nothing."""
        if len(set(stages)) < len(stages):
            return "visits a stage twice"
        furthest, distances = 0, []
        for stage in stages[1:]:
            if stage - furthest > self.max_stage_jump:
                return f"advances {stage - furthest} stages at once, not {self.max_stage_jump}"
            if stage < furthest:
                distances.append(furthest - stage)
            furthest = max(furthest, stage)
        if len(distances) > self.max_swaps:
            return f"has {len(distances)} swaps, not {self.max_swaps}"
        if max(distances, default=0) > self.max_swap_distance:
            return f"swaps over {max(distances)} stages, not {self.max_swap_distance}"
        if sum(distances) > self.max_swap_total_distance:
            return (
                f"swaps over {sum(distances)} stages in all, not {self.max_swap_total_distance}"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLink:
    """Directed pairs of nodes whose transfers pass one wire, one after the other."""

    pairs: tuple[tuple[int, int], ...]
    transfer_s: float
    """How long one micro-batch's activations, or their gradients, occupy the wire."""

    def __post_init__(self) -> None:
        checks.not_negative("shared_links.transfer_s", self.transfer_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathInstance:
    """Nodes, links and times, and how many micro-batches visit how many stages."""

    name: str
    partition_sizes: tuple[int, ...]
    """Nodes of each stage; those of stage 0 are the origins."""
    path_len: int
    """Stages a micro-batch visits, stage 0 included."""
    paths_per_origin: int
    num_waves: int
    """Micro-batches of each path, the next when the one before is done."""
    memory: tuple[int, ...]
    """Micro-batches each node holds at most, from its forward to its backward."""
    forward_s: tuple[float, ...]
    """Of one micro-batch, by node."""
    delay_s: tuple[tuple[float, ...], ...]
    """From the end of an operation on node i to its arrival on node j; infinite: no link."""
    backward_factor: float = 1.5
    loss_factor: float = 0.25
    gap_s: float = 0.13
    """Pause of a node after an operation."""
    origin_forward_gap_s: float = 0.09
    """The same after a forward of an origin."""
    wave_offset_s: float = 2.5
    """How much later each wave may start than the one before."""
    order: StageOrder = StageOrder()
    shared_links: tuple[SharedLink, ...] = ()
    gradient_bytes: float = 0.0
    """Gradients of a stage, summed over its nodes when all are done; 0: none is planned for."""
    latency_s: tuple[tuple[float, ...], ...] = ()
    """Of every pair of nodes, for the gradients; empty without them, as `bytes_per_s`."""
    bytes_per_s: tuple[tuple[float, ...], ...] = ()
    without: tuple[int, ...] = ()
    """Nodes that are lost: they keep their numbers and serve no stage."""

    def __post_init__(self) -> None:
        checks.not_empty("name", self.name)
        checks.not_empty("partition_sizes", self.partition_sizes)
        for stage, size in enumerate(self.partition_sizes):
            checks.whole_number(f"partition_sizes[{stage}]", size)
        checks.not_negative("gradient_bytes", self.gradient_bytes)
        self._check_sizes()
        for field in ("paths_per_origin", "num_waves", "path_len"):
            checks.whole_number(field, getattr(self, field))
        for field in ("backward_factor", "loss_factor", "gap_s", "origin_forward_gap_s"):
            checks.not_negative(field, getattr(self, field))
        checks.not_negative("wave_offset_s", self.wave_offset_s)
        for node, (time_s, held) in enumerate(zip(self.forward_s, self.memory, strict=True)):
            checks.positive(f"forward_s[{node}]", time_s)
            checks.whole_number(f"memory[{node}]", held)
        self._check_links()

    def _check_sizes(self) -> None:
        num_nodes = len(self.forward_s)
        checks.not_empty("forward_s", self.forward_s)
        if num_nodes > MOST_NODES:
            raise InputError(f"n_nodes: at most {MOST_NODES} can be planned, got {num_nodes}")
        if self.num_stages > num_nodes:
            raise InputError(
                f"n_stages: expected at most one stage a node, {num_nodes}, "
                f"got {self.num_stages}"
            )
        num_left = num_nodes - len(set(self.without))
        if sum(self.partition_sizes) != num_left:
            raise InputError(
                f"partition_sizes: expected every node in one stage, a sum of {num_left}, "
                f"got {sum(self.partition_sizes)}"
            )
        if len(self.memory) != num_nodes:
            raise InputError(f"memory: expected {num_nodes} entries, got {len(self.memory)}")
        if self.path_len > self.num_stages:
            raise InputError(
                f"path_len: expected at most n_stages = {self.num_stages}, got {self.path_len}"
            )

    def _check_links(self) -> None:
        num_nodes = self.num_nodes
        if len(self.delay_s) != num_nodes:
            raise InputError(f"delay_s: expected {num_nodes} rows, got {len(self.delay_s)}")
        for i, row in enumerate(self.delay_s):
            if len(row) != num_nodes:
                raise InputError(f"delay_s[{i}]: expected {num_nodes} entries, got {len(row)}")
            for j, delay in enumerate(row):
                if delay != math.inf:
                    checks.not_negative(f"delay_s[{i}][{j}]", delay)
        for k, link in enumerate(self.shared_links):
            for pair in link.pairs:
                if not all(0 <= node < num_nodes for node in pair):
                    raise InputError(
                        f"shared_links[{k}].pairs: expected nodes from 0 to {num_nodes - 1}, "
                        f"got {shown(list(pair))}"
                    )

    @property
    def num_nodes(self) -> int:
        return len(self.forward_s)

    @property
    def num_stages(self) -> int:
        return len(self.partition_sizes)

    @property
    def num_paths(self) -> int:
        return self.partition_sizes[0] * self.paths_per_origin

    @property
    def num_micro_batches(self) -> int:
        return self.num_paths * self.num_waves

    @property
    def skip_fraction(self) -> float:
        """Share of the stages a micro-batch leaves out."""
        return 1 - self.path_len / self.num_stages

    def release_s(self, paths: tuple[tuple[int, ...], ...]) -> tuple[float, ...]:
        """When the first wave of each path may start: one forward of its origin apart."""
        return tuple(
            a % self.paths_per_origin * self.forward_s[path[0]] for a, path in enumerate(paths)
        )

    def in_stage_delay_s(self, partitions: tuple[tuple[int, ...], ...]) -> float:
        """The largest delay between two nodes of one stage, which its reduction waits for."""
        return max(
            (
                self.delay_s[i][j]
                for nodes in partitions
                for i in nodes
                for j in nodes
                if i != j
            ),
            default=0.0,
        )

    def closing_s(self, nodes: tuple[int, ...]) -> float:
        """Time of the gradient reduction of a stage: a ring with its slowest pair in it.

        Source: Thakur, Rabenseifner & Gropp (2005), ring all-reduce.
        """
        return max(
            (self.pair_closing_s(i, j, len(nodes)) for i in nodes for j in nodes), default=0.0
        )

    def pair_closing_s(self, i: int, j: int, num_members: int) -> float:
        """Time of a ring all-reduce among so many nodes whose slowest link is from i to j."""
        if not self.gradient_bytes or i == j:
            return 0.0
        part_s = self.gradient_bytes / num_members / self.bytes_per_s[i][j]
        return 2 * (num_members - 1) * (self.latency_s[i][j] + part_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSchedule:
    """Which node serves which stage, and the nodes of every path."""

    partitions: tuple[tuple[int, ...], ...]
    paths: tuple[tuple[int, ...], ...]
    """Origin first; those of the first origin of `partitions` first."""
    release_s: tuple[float, ...]

    @property
    def stage_of(self) -> dict[int, int]:
        return {node: s for s, nodes in enumerate(self.partitions) for node in nodes}


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPlan:
    """A schedule with its time, and how much shorter any other could be."""

    schedule: PathSchedule
    iteration_s: float
    """By exact event simulation, without the closing gradient reduction."""
    step_s: float
    """The same with it."""
    lower_bound_s: float
    """No schedule of the same arrangement, or of any if nodes may move, has a shorter step."""
    bound_reason: str
    first_plan_s: float
    """Time it took to find a first schedule."""
    first_step_s: float
    solve_s: float
    reason: str

    @property
    def gap_fraction(self) -> float:
        """How far the schedule may be above the best one."""
        return self.step_s / self.lower_bound_s - 1
