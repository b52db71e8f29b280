"""Real clusters on this machine, started by `trimtab dev-cluster`'s own code."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Four nodes of eight fake GPUs each, found by SLURM_CONF; whole at the start of a test."""
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    folder = Path(tempfile.mkdtemp(prefix="trimtab-slurm-"))  # a socket's path must be short
    cluster = SlurmCluster(folder=folder)
    cluster.start(num_nodes=4, gpus_per_node=8, cpus_per_node=16)
    before = os.environ.get("SLURM_CONF")
    os.environ |= cluster.environment
    yield cluster
    cluster.stop()
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before
