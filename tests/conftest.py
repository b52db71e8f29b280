"""Which tests share a process where pytest-xdist runs several (`make test` runs two)."""

from typing import Any

import pytest

CLUSTERS = "tests/clusters/"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file in one process, for what it starts once; all that start clusters in one.

    pytest-xdist 3.8's own groups (`--dist=loadgroup`) are lost on pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return CLUSTERS if nodeid.startswith(CLUSTERS) else nodeid.partition("::")[0]

    return Scheduling(config, log)
