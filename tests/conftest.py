"""Which tests share a process where pytest-xdist runs several (`make test` runs two)."""

from pathlib import Path

import pytest

CLUSTERS = Path(__file__).parent / "clusters"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file in one process, for what it starts once; all that start clusters in one."""
    for item in items:
        shared = CLUSTERS if CLUSTERS in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(shared)))
