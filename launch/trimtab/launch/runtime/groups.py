"""Process groups for sequence groups, each made once and kept."""

from collections.abc import Iterable, Sequence

import torch.distributed as dist

from trimtab.core.plan import StepPlan


class GroupCache:
    """The communicators of every set of ranks that a plan has used so far.

    Making a communicator is collective over all ranks, so every rank must call `prepare` with
    the same plans in the same order.
    """

    def __init__(self, group_ranks: Sequence[int]) -> None:
        """`group_ranks[i]` is the global rank that plans call `i`."""
        self._global = tuple(group_ranks)
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def prepare(self, plan: StepPlan) -> None:
        """Make the communicators that `plan` needs and that do not exist yet."""
        for ranks in _rank_sets(plan):
            if len(ranks) > 1 and ranks not in self._groups:
                self._groups[ranks] = dist.new_group([self._global[rank] for rank in ranks])

    def get(self, ranks: tuple[int, ...]) -> dist.ProcessGroup | None:
        """The communicator of a prepared set of ranks; None for a group of one."""
        return self._groups[ranks] if len(ranks) > 1 else None


def _rank_sets(plan: StepPlan) -> Iterable[tuple[int, ...]]:
    for wave in plan.waves:
        for group in wave.groups:
            yield group.ranks
