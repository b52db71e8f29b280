"""The step in which no stage is skipped, which the published rules ask for now and then."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.core.errors import InfeasibleError
from trimtab.core.stage_paths import PathInstance
from trimtab.planners.paths.path_rules import FULL_MODEL_EVERY
from trimtab.planners.paths.path_search import PathSearch
from trimtab.planners.paths.path_starts import Partitions, stage_quotas

_ROUGH_TRIALS, _TRIALS = 20_000, 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FullModelStep:
    """How long such a step takes on the same arrangement, by exact event simulation."""

    every: int
    """One step of so many; the others skip."""
    step_s: float
    num_micro_batches: int
    paths_per_origin: int
    """Micro-batches an origin has under way at once, for the nodes hold no more."""

    def mean_step_s(self, skipping_s: float) -> float:
        """Mean over steps that skip, which take so long, and those that do not."""
        return ((self.every - 1) * skipping_s + self.step_s) / self.every


def full_model_step(
    instance: PathInstance, partitions: Partitions, *, is_over: Callable[[], bool]
) -> FullModelStep:
    """Plan the same micro-batches over all stages: fewer at once, in more waves.

    Raises:
        InfeasibleError: Nodes cannot hold one micro-batch of every origin at once.
    """
    per_origin = instance.paths_per_origin * instance.num_waves
    for paths in range(instance.paths_per_origin, 0, -1):
        if per_origin % paths:
            continue
        full = dataclasses.replace(
            instance, path_len=instance.num_stages, paths_per_origin=paths,
            num_waves=per_origin // paths,
        )  # fmt: skip
        try:
            stage_quotas(full, partitions)
        except InfeasibleError:
            continue
        search = PathSearch(full, fixed=partitions)
        found = search.improve(
            search.start(), trials=_ROUGH_TRIALS, is_over=is_over, is_rough=True
        )
        search.improve(found, trials=_TRIALS, is_over=is_over)
        assert search.best is not None
        return FullModelStep(
            every=FULL_MODEL_EVERY,
            step_s=search.best.step_s,
            num_micro_batches=full.num_micro_batches,
            paths_per_origin=paths,
        )
    raise InfeasibleError(
        "the full model: some stage cannot hold one micro-batch of every origin at once"
    )
