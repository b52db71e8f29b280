"""What failures and checkpoints leave of the time.

Failures are independent and exponential, at a rate that grows with the GPUs. After one, a job
restarts and does the work since its last checkpoint once more.

Source: Daly (2006), "A higher order estimate of the optimum checkpoint interval for restart
dumps", Future Generation Computer Systems 22(3): equations 13, 20 and 37.
"""

import math
from dataclasses import dataclass

from trimtab.core import checks
from trimtab.core.errors import InfeasibleError

LLAMA_3_FAILURES_PER_GPU_DAY = 419 / (54 * 16_384)
"""Of Llama 3 405B: 419 interruptions in 54 days on 16,384 H100 (arXiv:2407.21783)."""
_LONGEST_EXPONENT = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often a job fails, and what a checkpoint and a restart cost."""

    failures_per_gpu_day: float = LLAMA_3_FAILURES_PER_GPU_DAY
    checkpoint_s: float = 10.0
    """Training waits this long for a checkpoint."""
    restart_s: float = 600.0
    """From a failure until the job trains again."""
    checkpoint_every_s: float | None = None
    """Training time between checkpoints; None: the best."""

    def __post_init__(self) -> None:
        checks.not_negative("failures_per_gpu_day", self.failures_per_gpu_day)
        checks.positive("checkpoint_s", self.checkpoint_s)
        checks.not_negative("restart_s", self.restart_s)
        if self.checkpoint_every_s is not None:
            checks.positive("checkpoint_every_s", self.checkpoint_every_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """What is left of the time."""

    fraction: float
    """Productive training time over wall time."""
    checkpoint_every_s: float
    """Infinite where nothing fails and no interval is given."""
    failures_per_day: float
    """Of the whole job, on average."""


def goodput(num_gpus: int, reliability: Reliability) -> Goodput:
    """The goodput of a job on `num_gpus` GPUs.

    Raises:
        InfeasibleError: Failures come so often that no work would be done.
    """
    per_day = num_gpus * reliability.failures_per_gpu_day
    rate = per_day / 86_400
    every_s = reliability.checkpoint_every_s or best_interval_s(
        rate, checkpoint_s=reliability.checkpoint_s
    )
    if rate == 0:
        lost = 0.0 if math.isinf(every_s) else reliability.checkpoint_s / every_s
        return Goodput(
            fraction=1 / (1 + lost), checkpoint_every_s=every_s, failures_per_day=0.0
        )
    exponent = rate * (every_s + reliability.checkpoint_s)
    if exponent > _LONGEST_EXPONENT:
        raise InfeasibleError(
            f"failures: {per_day:.3g} a day on {num_gpus} GPUs leave no time between them for "
            f"a checkpoint every {every_s:.0f} s; write them more often"
        )
    wall_s = (1 / rate + reliability.restart_s) * math.expm1(exponent)
    return Goodput(
        fraction=every_s / wall_s, checkpoint_every_s=every_s, failures_per_day=per_day
    )


def best_interval_s(failures_per_s: float, *, checkpoint_s: float) -> float:
    """Daly's estimate of the best training time between checkpoints.

    sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + d / 18M) - d for a checkpoint time d below twice the
    mean time M between failures, else M.

    Args:
        failures_per_s: 1 / M; 0 means that no checkpoint is needed.
        checkpoint_s: d.
    """
    if failures_per_s == 0:
        return math.inf
    mean_s = 1 / failures_per_s
    if checkpoint_s >= 2 * mean_s:
        return mean_s
    ratio = checkpoint_s / (2 * mean_s)
    root = math.sqrt(2 * checkpoint_s * mean_s)
    return root * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint_s
