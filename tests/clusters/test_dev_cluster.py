"""`trimtab dev-cluster slurm` starts a real Slurm, and ends only what it has started."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from script_jobs import until

from trimtab.core.errors import InputError, JobFailedError
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.dev_cluster.daemons import Daemons, free_ports
from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster

pytestmark = pytest.mark.slurm

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where no cluster is yet; what is there afterwards is ended."""
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    place = Path(tempfile.mkdtemp(prefix="trimtab-dev-"))
    monkeypatch.setenv("HOME", str(place / "home"))
    yield place / "cluster"
    if (place / "cluster" / "cluster.json").exists():
        SlurmCluster(folder=place / "cluster").stop()
    shutil.rmtree(place)


def command(*argv: str, folder: Path) -> int:
    return main(["dev-cluster", "slurm", argv[0], f"--folder={folder}", *argv[1:]])


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    return lines[-1].removeprefix("error: ")


def pids_of(cluster: SlurmCluster) -> set[int]:
    daemons = Daemons(cluster.folder)
    return {pid for name in daemons.alive if (pid := daemons.pid(name)) is not None}


def running(marker: str) -> int:
    """Processes of this machine with a word in their command line."""
    found = subprocess.run(
        ["pgrep", "-fc", marker], capture_output=True, text=True, check=False
    )
    return int(found.stdout)


def test_a_user_starts_it_uses_it_kills_a_node_and_stops_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("start", "--nodes=2", "--gpus=3", "--cpus=4", folder=folder) == 0
    config = str(folder / "etc" / "slurm.conf")
    assert capsys.readouterr().out == f"export SLURM_CONF={config}\n"
    monkeypatch.setenv("SLURM_CONF", config)
    said = subprocess.run(
        ["srun", "--nodes=2", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "0,1\n0,1\n"

    before = pids_of(SlurmCluster(folder=folder))
    assert main(["dev-cluster", "slurm", "start", "--json"]) == 0  # found by SLURM_CONF
    assert document(capsys) == {
        "schema": 1,
        "kind": "slurm",
        "running": True,
        "folder": str(folder),
        "environment": {"SLURM_CONF": config},
        "nodes": {"n1": "idle", "n2": "idle"},
    }
    assert pids_of(SlurmCluster(folder=folder)) == before

    assert command("kill-node", "n2", folder=folder) == 0
    assert len(before - pids_of(SlurmCluster(folder=folder))) == 1
    assert command("kill-node", "n2", folder=folder) == 2
    assert error(capsys).startswith("node: n2 does not run; `trimtab dev-cluster slurm start-n")
    assert command("start-node", "n2", folder=folder) == 0
    assert len(pids_of(SlurmCluster(folder=folder))) == len(before)

    assert command("stop", folder=folder) == 0
    assert not folder.exists()
    assert running(str(folder)) == 0
    assert command("status", "--json", folder=folder) == 0
    capsys_out = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(capsys_out)["running"] is False


def test_stopping_ends_jobs_with_all_they_have_started(folder: Path) -> None:
    cluster = SlurmCluster(folder=folder)
    cluster.start(num_nodes=2, gpus_per_node=0, cpus_per_node=2)
    marker = f"sleep-of-{folder.parent.name}"
    job = f"setsid bash -c 'exec -a {marker} sleep 600' & exec -a {marker} sleep 600"
    step = subprocess.Popen(
        ["srun", "--nodes=2", "bash", "-c", job], env={**os.environ, **cluster.environment}
    )
    # The command line of srun and of each node's shell hold the word, too.
    until(lambda: running(f"^{marker}") == 4)
    cluster.kill_node("n1", hard=True)
    assert running(f"^{marker}") == 2
    cluster.stop()
    assert running(f"^{marker}") == 0
    step.kill()
    step.wait()


def test_two_clusters_know_nothing_of_each_other(folder: Path) -> None:
    one, other = (SlurmCluster(folder=folder.parent / name) for name in ("cluster", "b"))
    one.start(num_nodes=1, gpus_per_node=0, cpus_per_node=1)
    other.start(num_nodes=2, gpus_per_node=1, cpus_per_node=1)
    assert one.states() == {"n1": "idle"}
    one.stop()
    assert other.states() == {"n1": "idle", "n2": "idle"}
    other.stop()


def test_what_died_is_started_again_and_the_rest_stays(folder: Path) -> None:
    cluster = SlurmCluster(folder=folder)
    cluster.start(num_nodes=2, gpus_per_node=0, cpus_per_node=1)
    daemons = Daemons(folder)
    controller, node = daemons.pid("slurmctld"), daemons.pid("slurmd-n2")
    assert controller is not None
    os.kill(controller, signal.SIGKILL)
    until(lambda: not cluster.is_running)
    with pytest.raises(InputError, match=r"the cluster in .* does not run"):
        cluster.start_node("n1")
    cluster.start(num_nodes=2, gpus_per_node=0, cpus_per_node=1)
    assert Daemons(folder).pid("slurmctld") != controller
    assert Daemons(folder).pid("slurmd-n2") == node


def test_another_shape_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SlurmCluster(folder=folder).start(num_nodes=1, gpus_per_node=2, cpus_per_node=4)
    assert command("start", "--nodes=2", folder=folder) == 2
    assert error(capsys) == (
        f"--folder: {folder} holds a cluster made as slurm (1 nodes, 2 GPUs and 4 CPUs each), "
        "not slurm (2 nodes, 2 GPUs and 4 CPUs each); stop that first: trimtab dev-cluster "
        "slurm stop"
    )


def test_a_folder_that_is_not_a_clusters_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    assert command("start", folder=folder) == 2
    assert error(capsys).startswith("--folder: expected an empty folder or none, got ")
    assert command("stop", folder=folder) == 2
    assert error(capsys).startswith(
        f"--folder: expected a slurm cluster in {folder}, found none"
    )
    assert (folder / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["a b", "a#b", "x" * 80, "a\nb", "$(touch bad)"])
def test_a_folder_whose_name_slurm_cannot_take_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert command("start", folder=folder.parent / name) == 2
    assert error(capsys).startswith("--folder: Slurm takes at most 70 letters, digits and ")
    assert not (folder.parent / name).exists()


def test_nodes_that_do_not_exist_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SlurmCluster(folder=folder).start(num_nodes=2, gpus_per_node=0, cpus_per_node=1)
    for name in ("kill-node", "start-node"):
        assert command(name, "n3", folder=folder) == 2
        assert error(capsys) == "node: expected one of n1, n2, got 'n3'"


def test_missing_programs_are_named_with_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(InputError) as refused:
        SlurmCluster(folder=folder).start(num_nodes=1, gpus_per_node=0, cpus_per_node=1)
    assert str(refused.value) == (
        "dev-cluster: munge, sinfo, scontrol, scancel not found; it needs what Debian and "
        "Ubuntu have as: apt-get install slurm-wlm munge"
    )


def test_a_later_process_with_the_same_number_is_not_ended(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("a", SLEEP)
    pid = daemons.pid("a")
    record = tmp_path / "daemons.json"
    other = json.loads(record.read_text())
    other["a"]["started"] = other["a"]["started"] + "0"
    record.write_text(json.dumps(other))
    Daemons(tmp_path).kill("a")
    assert Daemons(tmp_path).alive == ()
    assert daemons.pid("a") == pid
    daemons.kill("a")
    assert daemons.alive == ()


def test_a_daemon_that_dies_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("a", [sys.executable, "-c", "raise SystemExit('no such key')"])
    with pytest.raises(JobFailedError, match=r"the thing: a has died; .*: no such key$"):
        daemons.await_answer("a", lambda: False, what="the thing", timeout_s=60)


def test_a_daemon_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="/none/slurmd could not be started: "):
        Daemons(tmp_path).start("a", ["/none/slurmd"])


def test_a_damaged_record_of_processes_is_one_clear_line(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"a": {}}'):
        (tmp_path / "daemons.json").write_text(text)
        with pytest.raises(InputError, match=r"daemons\.json: damaged: "):
            Daemons(tmp_path)


def test_free_ports_are_not_those_of_outgoing_connections() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert max(ports) < int(ephemeral[0])
