"""What this version's worker can run; every launcher asks before it starts anything."""

from typing import Final

from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout

_PRECISIONS: Final = ("fp32", "bf16")
_ONES: Final = ("tp", "pp", "cp", "ep", "vpp", "zero")
"""Fields of a layout that must be 1: sequence groups over dp, the distributed optimizer."""


def check_runnable(job: JobSpec, *, layout: Layout) -> None:
    """Refuse what the worker cannot train.

    Raises:
        InputError: The layout, the precision or the model is not one it runs.
    """
    for name in _ONES:
        given = getattr(layout, name)
        if given != 1:
            raise InputError(
                f"layout.{name}: this version's worker runs {name} = 1 only, got {given}; set "
                f"layout.{name}=1 and layout.dp={job.num_ranks} (or leave layout out)"
            )
    if job.training.precision not in _PRECISIONS:
        raise InputError(
            f"training.precision: this version's worker computes in "
            f"{' or '.join(_PRECISIONS)}, got {job.training.precision!r}"
        )
    if job.model.planned_only:
        raise InputError(
            f"model: this version's worker cannot train it, because {job.model.planned_only}; "
            "`trimtab plan` forecasts it"
        )
    if job.model.moe is not None:
        raise InputError(
            "model.moe: this version's worker trains dense models only; `trimtab plan` "
            "forecasts mixtures of experts"
        )
