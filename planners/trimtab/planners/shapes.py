"""Which layouts a job has: the degrees that model, nodes, batch and pins allow."""

import bisect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import Precision
from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, Recompute
from trimtab.core.rates import StackRates
from trimtab.planners.placement import Machine, layers_of, relieved_layers, stage_layers
from trimtab.planners.timeline import check_schedule

RECOMPUTES_TRIED: tuple[Recompute, ...] = ("none", "full")
"""Fused attention keeps no scores that selective recompute could spare."""
_MICRO_BATCHES = (1, 2, 4, 8, 16)
_SHORTEST_SHARD = 1024
"""cp is not tried where it leaves fewer tokens of a sequence on a rank."""


class BatchSums:
    """A batch, summed up once for all layouts."""

    def __init__(self, batch: BatchProfile, model: ModelSpec) -> None:
        self.lengths = sorted(batch.lengths)
        self.tokens_up_to = [0, *itertools.accumulate(self.lengths)]
        self.num_sequences = batch.num_sequences
        self.num_tokens = batch.num_tokens
        self.squares = float(sum(map(model.attended_squares, batch.lengths)))
        self.longest = batch.longest
        self.longest_squares = float(model.attended_squares(batch.longest))
        self.is_uniform = self.lengths[0] == self.longest

    def tokens_between(self, above: int, up_to: int) -> int:
        """Tokens of the sequences longer than `above` and no longer than `up_to`."""
        first = bisect.bisect_right(self.lengths, above)
        last = bisect.bisect_right(self.lengths, up_to)
        return self.tokens_up_to[last] - self.tokens_up_to[first]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a layout is sought for."""

    model: ModelSpec
    used: Machine
    batch: BatchSums
    model_flops: float
    precision: Precision
    token_cap: int | None
    pinned: Mapping[str, int]
    settings: Mapping[str, str]
    """Pinned too: recompute, schedule, offload."""
    stack: StackRates

    @property
    def recomputes(self) -> tuple[Recompute, ...]:
        if "recompute" in self.settings:
            return (cast(Recompute, self.settings["recompute"]),)
        return RECOMPUTES_TRIED


def shapes(job: Job) -> Iterator[Layout]:
    """Degrees tp, pp, cp, dp, ep that the model, the nodes and the pins allow."""
    model, num_ranks = job.model, job.used.num_ranks
    zero = job.pinned.get("zero", 1)
    kept: dict[str, Any] = {
        name: value for name, value in job.settings.items() if name != "recompute"
    }
    for tp in _options(job, "tp", min(job.used.gpus_per_node, model.num_heads)):
        for pp in _options(job, "pp", min(model.num_layers, num_ranks // tp)):
            for cp in _options(job, "cp", num_ranks // (tp * pp)):
                dp, rest = divmod(num_ranks, tp * pp * cp)
                if rest or job.pinned.get("dp", dp) != dp:
                    continue
                for ep in _options(job, "ep", dp * cp):
                    if dp * cp % ep:
                        continue
                    yield Layout(
                        tp=tp, pp=pp, cp=cp, dp=dp, ep=ep, zero=zero,
                        sequence_parallel=tp > 1, **kept,
                    )  # fmt: skip


def check_layout(job: Job, layout: Layout) -> None:
    """Raise unless model, nodes and batch admit `layout`.

    Raises:
        InputError: A degree is not possible.
    """
    if layout.num_ranks != job.used.num_ranks:
        raise InputError(
            f"layout: {layout} uses {layout.num_ranks} ranks, but num_ranks = "
            f"{job.used.num_ranks}"
        )
    for name in ("tp", "pp", "ep"):
        problem = _problem(job, name, getattr(layout, name))
        if problem is not None:
            raise InputError(f"layout.{name}: {problem}")
    if layout.group_ranks % layout.ep:
        raise InputError(f"layout.ep: {layout.ep} does not divide dp x cp")
    layers_of(job.model, layout)
    check_schedule(layout.schedule, pp=layout.pp, vpp=layout.vpp)
    if not interleaves(job, layout):
        raise InputError(
            f"layout.vpp: {layout.vpp} chunks a stage need pp > 1, pp x vpp dividing the "
            f"{job.model.num_layers} layers, and pp dividing the micro-batches of equal lengths"
        )


def stage_splits(job: Job, shape: Layout) -> list[tuple[int, ...]]:
    """Layers of the stages: as even as can be, and with fewer beside a large output matrix."""
    if shape.pp == 1 or shape.stage_layers:
        return [shape.stage_layers]
    model = job.model
    per_layer = model.attention_parameters_per_layer + model.active_mlp_parameters_per_layer
    relieved = relieved_layers(
        model.num_layers, shape.pp, output_layers=model.vocab * model.hidden / per_layer
    )
    if relieved == stage_layers(model.num_layers, shape.pp):
        return [()]
    return [(), relieved]


def chunk_counts(job: Job, shape: Layout) -> list[int]:
    """Values of vpp: divisors of a stage's layers; only with 1F1B, pp > 1 and even stages."""
    if "vpp" in job.pinned:
        return [job.pinned["vpp"]]
    layers, uneven = divmod(job.model.num_layers, shape.pp)
    if shape.pp == 1 or uneven or shape.schedule != "1f1b":
        return [1]
    return [vpp for vpp in (1, 2, 3, 4, 5, 6, 8) if layers % vpp == 0]


def micro_batches(job: Job) -> list[int]:
    """Values of micro_batch_seqs; waves of varied lengths have none."""
    if "micro_batch_seqs" in job.pinned:
        return [job.pinned["micro_batch_seqs"]]
    return list(_MICRO_BATCHES) if job.batch.is_uniform else [1]


def interleaves(job: Job, layout: Layout) -> bool:
    """Whether the interleaved schedule runs: even chunks, pp divides the micro-batches.

    Source: Narayanan et al. (2021), arXiv:2104.04473, section 2.2.
    """
    if layout.vpp == 1:
        return True
    even_chunks = job.model.num_layers % (layout.pp * layout.vpp) == 0
    if layout.pp == 1 or not even_chunks or not job.batch.is_uniform:
        return False
    per_rank, rest = divmod(job.batch.num_sequences, layout.dp * layout.micro_batch_seqs)
    return rest == 0 and per_rank % layout.pp == 0


def _options(job: Job, name: str, most: int) -> list[int]:
    """Values of one degree up to `most`; a pinned one must be possible.

    Raises:
        InputError: The pinned value is not possible.
    """
    if name in job.pinned:
        problem = _problem(job, name, job.pinned[name])
        if problem is not None:
            raise InputError(f"layout.{name}: {problem}")
        return [job.pinned[name]] if job.pinned[name] <= most else []
    if name == "cp":
        if not job.batch.is_uniform:
            return [1]
        most = min(most, job.batch.longest // _SHORTEST_SHARD)
    divisors = (value for value in range(1, most + 1) if job.used.num_ranks % value == 0)
    return [v for v in divisors if _problem(job, name, v) is None] or [1]


def _problem(job: Job, name: str, value: int) -> str | None:
    """Why a degree cannot be `value`, if so."""
    used = job.used
    if used.num_ranks % value:
        return f"{value} does not divide num_ranks = {used.num_ranks}"
    problem = layout_problem(job.model, name, value)
    if problem is None and name == "tp" and used.gpus_per_node % value:
        return f"{value} ranks do not fill a node of {used.gpus_per_node} GPUs evenly"
    return problem


def layout_problem(model: ModelSpec, name: str, value: int) -> str | None:
    """Why the model does not admit a degree of `value`, if so."""
    if name == "tp":
        split = ("num_heads", "num_kv_heads", *(() if model.moe else ("ffn_hidden",)))
        for field in split:
            if getattr(model, field) % value:
                return f"{value} does not divide {field} = {getattr(model, field)}"
    if name == "pp" and value > model.num_layers:
        return f"{value} stages are more than the model's {model.num_layers} layers"
    if name == "ep" and value > 1:
        if model.moe is None:
            return f"the model {model.name!r} has no experts, got {value}"
        if model.moe.num_experts % value:
            return f"{value} does not divide num_experts = {model.moe.num_experts}"
    return None
