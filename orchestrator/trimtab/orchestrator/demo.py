"""What the demo runs: a job with planned groups, and the same batches with one degree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, median_low

from trimtab.core.errors import InfeasibleError
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout
from trimtab.orchestrator.config import load_job
from trimtab.orchestrator.step_planning import StepPlanner, step_planner


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoForecast:
    """What both runs are expected to do."""

    num_steps: int
    num_sequences: int
    """Of each step."""
    shortest_tokens: int
    median_tokens: int
    longest_tokens: int
    tokens_per_step: float
    first_step: str
    """The degrees of the first step's groups."""
    planned_step_s: float
    uniform_step_s: float
    """Medians over the steps."""
    ratio: float
    """Median over steps of uniform over planned."""
    mixed_fraction: float
    """Share of the planned steps with groups of more than one degree."""
    uniform_degree: int


def demo_job_path() -> Path:
    """`configs/demo.yaml`: that of the checkout, or the copy a wheel carries."""
    shipped = Path(__file__).parent / "shipped"
    root = shipped if shipped.is_dir() else Path(__file__).parents[3]
    return root / "configs" / "demo.yaml"


def demo_job(*, num_steps: int, num_ranks: int) -> JobSpec:
    """The demo's job on `num_ranks` processes of this machine.

    The token cap is raised where it takes more than the job file's, so that the widest group of
    these ranks still holds the longest document.

    Raises:
        InputError: A number is out of range.
    """
    job = load_job(
        demo_job_path(),
        [
            f"training.num_steps={num_steps}",
            f"num_ranks={num_ranks}",
            f"layout={{dp: {num_ranks}}}",
        ],
    )
    widest = max(
        degree
        for degree in range(1, num_ranks + 1)
        if num_ranks % degree == job.model.num_heads % degree == 0
    )
    needed = math.ceil(job.data.max_seq_tokens / widest)
    planning = job.step_planning
    token_cap = max(planning.token_cap or 0, needed)
    return replace(job, step_planning=replace(planning, token_cap=token_cap))


def uniform_job(job: JobSpec, *, longest_tokens: int) -> JobSpec:
    """`job` as it would run without step plans: every group of one degree, in every step.

    Args:
        job: The job with planned groups.
        longest_tokens: The longest sequence the run meets. The degree is the smallest whose
            groups hold it: without step plans one has to do for all.

    Raises:
        InfeasibleError: No group holds the longest sequence.
    """
    planner = _planner(job)
    token_cap = planner.profile.token_cap
    degree = next((d for d in planner.degrees if longest_tokens <= d * token_cap), None)
    if degree is None:
        raise InfeasibleError(
            f"a sequence of {longest_tokens} tokens fits in no group of {job.num_ranks} ranks "
            f"with {token_cap} tokens each (step_planning.token_cap)"
        )
    planning = replace(job.step_planning, grouping="uniform", uniform_degree=degree)
    return replace(job, name=f"{job.name}-uniform", step_planning=planning)


def forecast(
    job: JobSpec, *, uniform: JobSpec, batches: Sequence[Sequence[int]]
) -> DemoForecast:
    """Plan every step of both runs, before either starts.

    Raises:
        InfeasibleError: A sequence fits in no group.
    """
    planned = [_planner(job).plan(lengths, step=i) for i, lengths in enumerate(batches, 1)]
    one_degree = [
        _planner(uniform).plan(lengths, step=i) for i, lengths in enumerate(batches, 1)
    ]
    lengths = [length for batch in batches for length in batch]
    return DemoForecast(
        num_steps=len(batches),
        num_sequences=len(batches[0]),
        shortest_tokens=min(lengths),
        median_tokens=median_low(lengths),
        longest_tokens=max(lengths),
        tokens_per_step=sum(lengths) / len(batches),
        first_step=planned[0].groups_text,
        planned_step_s=median(plan.step_s for plan in planned),
        uniform_step_s=median(plan.step_s for plan in one_degree),
        ratio=median(
            other.step_s / plan.step_s for plan, other in zip(planned, one_degree, strict=True)
        ),
        mixed_fraction=sum(len(plan.degrees) > 1 for plan in planned) / len(planned),
        uniform_degree=one_degree[0].degrees[0],
    )


def _planner(job: JobSpec) -> StepPlanner:
    return step_planner(job, job.layout or Layout(dp=job.num_ranks))
