"""Trimtab's composition root; the documented Python API is re-exported here, lazily."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.orchestrator.api import (
        load_cluster,
        load_job,
        load_lengths,
        load_model,
        load_profile,
        plan,
        plan_step,
        prepare,
        resume,
        submit,
    )

__all__ = [
    "load_cluster",
    "load_job",
    "load_lengths",
    "load_model",
    "load_profile",
    "plan",
    "plan_step",
    "prepare",
    "resume",
    "submit",
]


def __getattr__(name: str) -> Any:
    """Import `trimtab.orchestrator.api` when one of its functions is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("trimtab.orchestrator.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
