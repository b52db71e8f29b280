"""Which skips and swaps a model converges with, as published; and who breaks that.

What is known, with its source:

- SkipPipe (arXiv:2502.19913): the first and the last layers (here both in stage 0, embedding
  and head) are never skipped; all stages are used equally; swaps stay within `StageOrder`'s
  defaults; perplexity is 2 % worse when a quarter of the model is left out and 7 % when half of
  it is; more than half is not published.
- The authors' code (gensyn-ai/skippipe at 7f20d8a) swaps no stages when it trains, and trains
  the full model every 10th step. That skips and swaps together cost no quality is unproven.
"""

from dataclasses import dataclass
from typing import Final

from trimtab.core.errors import InputError
from trimtab.core.stage_paths import PathInstance, PathSchedule, StageOrder
from trimtab.planners.paths.path_times import stage_uses

MOST_SKIPPED_FRACTION: Final = 0.5
MOST_USE_SPREAD: Final = 1
"""Paths by which the uses of two stages may differ: what division leaves over."""
FULL_MODEL_EVERY: Final = 10

RULES: Final = ("skips", "swaps", "equal-use", "ends")

_PAPER = "arXiv:2502.19913"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRule:
    """A published rule that a schedule breaks."""

    rule: str
    detail: str
    source: str


def broken_rules(instance: PathInstance, schedule: PathSchedule) -> tuple[BrokenRule, ...]:
    """The published rules that a schedule breaks, in the order of `RULES`."""
    details = {
        "skips": _skips(instance),
        "swaps": _swaps(schedule),
        "equal-use": _equal_use(schedule),
        "ends": _ends(schedule),
    }
    return tuple(
        BrokenRule(rule=rule, detail=detail, source=_PAPER)
        for rule, detail in details.items()
        if detail is not None
    )


def refuse_broken(broken: tuple[BrokenRule, ...], *, allowed: tuple[str, ...]) -> None:
    """Let a schedule pass only where all it breaks was asked for.

    Raises:
        InputError: It breaks a rule that is not in `allowed`.
    """
    for one in broken:
        if one.rule not in allowed:
            raise InputError(
                f"{one.rule}: {one.detail} ({one.source}); "
                f"--allow {one.rule} plans it all the same"
            )


def num_swaps(schedule: PathSchedule) -> int:
    """Visits of a stage behind the furthest one so far, over all paths."""
    stage_of = schedule.stage_of
    count = 0
    for path in schedule.paths:
        stages = [stage_of[node] for node in path]
        count += sum(stage < max(stages[:p]) for p, stage in enumerate(stages) if p)
    return count


def _skips(instance: PathInstance) -> str | None:
    if instance.skip_fraction <= MOST_SKIPPED_FRACTION + 1e-9:
        return None
    return (
        f"{instance.skip_fraction:.0%} of the stages are skipped; results are published up to "
        f"{MOST_SKIPPED_FRACTION:.0%}"
    )


def _swaps(schedule: PathSchedule) -> str | None:
    stage_of = schedule.stage_of
    for a, path in enumerate(schedule.paths):
        problem = StageOrder().problem(tuple(stage_of[node] for node in path))
        if problem is not None:
            return f"path {a} {problem}"
    return None


def _equal_use(schedule: PathSchedule) -> str | None:
    uses = stage_uses(schedule)[1:]
    if not uses or max(uses) - min(uses) <= MOST_USE_SPREAD:
        return None
    least, most = uses.index(min(uses)) + 1, uses.index(max(uses)) + 1
    return (
        f"stage {least} is on {min(uses)} paths and stage {most} on {max(uses)}; all stages "
        "are to be trained equally"
    )


def _ends(schedule: PathSchedule) -> str | None:
    for a, path in enumerate(schedule.paths):
        if path[0] not in schedule.partitions[0]:
            return f"path {a} leaves out stage 0, which holds the first and the last layers"
    return None
