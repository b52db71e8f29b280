"""Real clusters on this machine, started by `trimtab dev-cluster`'s own code."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.orchestrator.dev_cluster import slurm_accounting
from trimtab.orchestrator.dev_cluster.daemons import wait_until
from trimtab.orchestrator.dev_cluster.ray import RayCluster
from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Four nodes of eight fake GPUs each, found by SLURM_CONF."""
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    with pytest.MonkeyPatch.context() as patch:
        cluster = SlurmCluster(folder=_short_folder())
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        try:
            cluster.start(num_nodes=4, gpus_per_node=8, cpus_per_node=16)
            cluster.folder.chmod(0o755)  # for slurmrestd, which root may not run
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def mended_slurm(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The same for a test that kills nodes: afterwards they are back and nothing runs."""
    yield slurm_cluster
    subprocess.run(["scancel", "--me"], check=True)
    for node in slurm_cluster.nodes:
        slurm_cluster.start_node(node)
    wait_until(
        lambda: set(slurm_cluster.states().values()) == {"idle"},
        what="every node is idle",
        timeout_s=60,
    )


@pytest.fixture(scope="session")
def _slurm_with_accounting() -> Iterator[SlurmCluster]:
    missing = [name for name in slurm_accounting.PROGRAMS if not _is_installed(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmdbd mariadb-server")
    cluster = SlurmCluster(folder=_short_folder())
    try:
        cluster.start(num_nodes=1, gpus_per_node=0, cpus_per_node=16, accounting=True)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm_with_accounting(
    _slurm_with_accounting: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> SlurmCluster:
    """One node of a cluster that knows the account `dev`, in place of `slurm_cluster`."""
    for name, value in _slurm_with_accounting.environment.items():
        monkeypatch.setenv(name, value)
    return _slurm_with_accounting


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """Three nodes of four CPUs and two fake GPUs each, found by RAY_ADDRESS."""
    with pytest.MonkeyPatch.context() as patch:
        cluster = RayCluster(folder=_short_folder())
        try:
            cluster.start(num_nodes=3, gpus_per_node=2, cpus_per_node=4)
            for name, value in cluster.environment.items():
                patch.setenv(name, value)
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def mended_ray(ray_cluster: RayCluster) -> Iterator[RayCluster]:
    """The same for a test that kills nodes: afterwards there are others in their place."""
    yield ray_cluster
    for node, state in ray_cluster.states().items():
        if state == "dead":
            ray_cluster.start_node(node)


def _short_folder() -> Path:
    """A folder whose sockets' paths are not too long, as pytest's may be."""
    return Path(tempfile.mkdtemp(prefix="trimtab-"))


def _is_installed(program: str) -> bool:
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(program, path=places) is not None
