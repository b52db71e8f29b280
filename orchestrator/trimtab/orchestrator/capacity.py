"""How many GPUs, of which kind: time, money and energy of a whole training, size by size."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trimtab.core import checks
from trimtab.core.cluster import ClusterSpec, Link, NicSpec, NodeSpec
from trimtab.core.devices import Device, device
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.job import JobSpec
from trimtab.core.rates import RateBook
from trimtab.orchestrator import api
from trimtab.planners.goodput import Reliability, goodput

_GPUS_PER_NODE = 8
_LATENCY_S = 5e-6
_NICS = 8
DEFAULT_PUE = 1.2
"""Power of a data center over that of its machines; an assumption."""
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the training with its own context, and its own batch."""

    fraction: float
    """Of all tokens."""
    seq_tokens: int
    batch_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What GPUs cost."""

    price: float | None = None
    """Of a GPU-hour; None: not asked."""
    power_w: float | None = None
    """Of a GPU under load; None: what the datasheet says, where the device is known."""
    pue: float = DEFAULT_PUE

    def __post_init__(self) -> None:
        if self.price is not None:
            checks.not_negative("--price", self.price)
        if self.power_w is not None:
            checks.positive("--power-w", self.power_w)
        if not 1 <= self.pue < 10:
            raise InputError(f"--pue: expected a number from 1 to 10, got {self.pue:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRow:
    """A training on so many GPUs of a kind; what follows `reason` is None if it cannot run."""

    gpu: str
    num_gpus: int
    reason: str | None
    """Why no layout runs; None: one does."""
    layouts: tuple[str, ...] = ()
    """The best of each phase."""
    step_s: float | None = None
    """Of the first phase."""
    tokens_per_s_per_gpu: float | None = None
    """Over all phases, while it trains."""
    mfu: float | None = None
    train_s: float | None = None
    """Without faults and checkpoints."""
    low_s: float | None = None
    """Lower end of the 80 % interval of `wall_s`, by that of the steps."""
    high_s: float | None = None
    goodput: float | None = None
    checkpoint_every_s: float | None = None
    wall_s: float | None = None
    gpu_hours: float | None = None
    money: float | None = None
    energy_kwh: float | None = None
    outside: str | None = None
    """Why the job is unlike all that was calibrated on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a training must keep to."""

    deadline_s: float | None = None
    budget: float | None = None

    def kept_by(self, row: CapacityRow) -> bool:
        """Whether it can run at all, in time and for the money."""
        if row.wall_s is None:
            return False
        in_time = self.deadline_s is None or row.wall_s <= self.deadline_s
        money = row.money if row.money is not None else 0.0
        return in_time and (self.budget is None or money <= self.budget)


def capacity_row(
    job: JobSpec,
    *,
    gpu: str | None,
    num_gpus: int,
    num_tokens: float,
    phases: Sequence[Phase],
    reliability: Reliability,
    costs: Costs,
    rates: RateBook | None = None,
) -> CapacityRow:
    """Forecast the whole training on `num_gpus` GPUs.

    Args:
        job: The job; of its cluster only the kind of node counts.
        gpu: A device's name (`core.devices`); None: the job's own cluster, with as many nodes.
        num_gpus: How many.
        num_tokens: Of the whole training.
        phases: Their fractions add up to 1.
        reliability: Of GPUs and restarts.
        costs: Of GPUs.
        rates: What devices and software reach; None: what is shipped.

    Raises:
        InputError: The device is unknown, or has no peak at the job's precision.
    """
    cluster = _cluster(job, gpu=gpu, num_gpus=num_gpus)
    name = cluster.gpu_names[0]
    base = dataclasses.replace(
        job, cluster=cluster, num_ranks=num_gpus, num_nodes=None, layout=None, profile=None
    )
    _check_device(base, name)
    try:
        plans = [
            (phase, api.plan(_in_phase(base, phase), rates=rates, fixed={})) for phase in phases
        ]
        kept = goodput(num_gpus, reliability)
    except (InfeasibleError, InputError) as error:
        return CapacityRow(gpu=name, num_gpus=num_gpus, reason=str(error))
    forecasts = [(phase.fraction * num_tokens, plan.forecast) for phase, plan in plans]
    train_s = sum(tokens / each.tokens_per_s for tokens, each in forecasts)
    flops = sum(tokens / each.num_tokens * each.model_flops for tokens, each in forecasts)
    first = forecasts[0][1]
    wall_s = train_s / kept.fraction
    gpu_hours = wall_s * num_gpus / _HOUR_S
    power_w = costs.power_w if costs.power_w is not None else _power_w(name)
    return CapacityRow(
        gpu=name,
        num_gpus=num_gpus,
        reason=None,
        layouts=tuple(str(plan.layout) for _, plan in plans),
        step_s=first.step_s,
        tokens_per_s_per_gpu=num_tokens / train_s / num_gpus,
        mfu=flops / (train_s * num_gpus * (first.peak_flop_per_s or 1.0)),
        train_s=train_s,
        low_s=None if first.low_s is None else wall_s * first.low_s / first.step_s,
        high_s=None if first.high_s is None else wall_s * first.high_s / first.step_s,
        goodput=kept.fraction,
        checkpoint_every_s=(
            None if reliability.failures_per_gpu_day == 0 else kept.checkpoint_every_s
        ),
        wall_s=wall_s,
        gpu_hours=gpu_hours,
        money=None if costs.price is None else gpu_hours * costs.price,
        energy_kwh=None if power_w is None else gpu_hours * power_w * costs.pue / 1000,
        outside=next((each.outside for _, each in forecasts if each.outside), None),
    )


def answers(rows: Iterable[CapacityRow], limits: Limits) -> dict[str, CapacityRow]:
    """The rows that people ask for: `cheapest` and `fastest` of those that keep the limits."""
    kept = [row for row in rows if limits.kept_by(row)]
    if not kept:
        return {}
    return {
        "cheapest": min(kept, key=lambda row: row.gpu_hours or 0.0),
        "fastest": min(kept, key=lambda row: row.wall_s or 0.0),
    }


def phases_of(job: JobSpec, texts: Sequence[str]) -> list[Phase]:
    """Phases as `FRACTION:TOKENS[:BATCH]`; none: one, as the job says.

    Raises:
        InputError: One has another form, or their fractions do not add up to 1.
    """
    batch = job.training.global_batch_seqs
    if not texts:
        return [Phase(fraction=1.0, seq_tokens=job.data.max_seq_tokens, batch_seqs=batch)]
    phases = []
    for text in texts:
        words = text.split(":")
        try:
            fraction, seq_tokens = float(words[0]), int(words[1])
            batch_seqs = int(words[2]) if len(words) > 2 else batch
        except (ValueError, IndexError) as error:
            raise InputError(
                f"--phase: expected FRACTION:TOKENS or FRACTION:TOKENS:BATCH, as 0.95:8192, "
                f"got {text!r}"
            ) from error
        checks.fraction("--phase", fraction)
        checks.whole_number("--phase", seq_tokens)
        checks.whole_number("--phase", batch_seqs)
        phases.append(Phase(fraction=fraction, seq_tokens=seq_tokens, batch_seqs=batch_seqs))
    total = sum(phase.fraction for phase in phases)
    if abs(total - 1) > 1e-6:
        raise InputError(f"--phase: expected fractions that add up to 1, got {total:g}")
    return phases


def _cluster(job: JobSpec, *, gpu: str | None, num_gpus: int) -> ClusterSpec:
    """As many nodes as hold the GPUs: of the job's first kind, or of the device's server."""
    if gpu is None:
        node = job.cluster.nodes[0]
        if node.gpu.is_cpu:
            raise InputError(
                f"cluster: {job.cluster.name!r} has no GPU; name a cluster file that has "
                "(cluster=...), or --gpu-types h100"
            )
    else:
        node = _server(device(gpu))
    per_node = min(num_gpus, node.gpus_per_node)
    count = -(-num_gpus // per_node)
    return ClusterSpec(
        name=f"{count} x {per_node} {node.gpu.name}",
        nodes=(dataclasses.replace(node, count=count, gpus_per_node=per_node),),
    )


def _server(found: Device) -> NodeSpec:
    return NodeSpec(
        name="node",
        count=1,
        gpu=found.spec,
        gpus_per_node=_GPUS_PER_NODE,
        intra_node=Link(bytes_per_s=found.fast_link_bytes_per_s, latency_s=_LATENCY_S),
        nics=(
            NicSpec(
                kind="infiniband",
                count=_NICS,
                bytes_per_s=found.usual_nic_bytes_per_s * _GPUS_PER_NODE / _NICS,
                latency_s=_LATENCY_S,
            ),
        ),
        island="cluster",
    )


def _check_device(job: JobSpec, name: str) -> None:
    precision = job.training.precision
    peaks: Mapping[str, float] = {
        peak.precision: peak.flop_per_s for peak in job.cluster.nodes[0].gpu.peaks
    }
    if precision not in peaks:
        known = ", ".join(sorted(peaks)) or "none"
        raise InputError(f"training.precision: the {name} has no {precision}; it has {known}")


def _in_phase(job: JobSpec, phase: Phase) -> JobSpec:
    return dataclasses.replace(
        job,
        data=dataclasses.replace(job.data, max_seq_tokens=phase.seq_tokens),
        training=dataclasses.replace(job.training, global_batch_seqs=phase.batch_seqs),
        model=dataclasses.replace(
            job.model, max_seq_tokens=max(job.model.max_seq_tokens, phase.seq_tokens)
        ),
    )


def _power_w(name: str) -> float | None:
    try:
        return device(name).power_w
    except InputError:
        return None
