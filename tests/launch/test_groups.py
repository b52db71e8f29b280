"""Groups bound to the interface that their settings name: real ranks over gloo."""

import json
import os
import socket
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types
import pytest

from trimtab.core.communicators import RankNetwork
from trimtab.core.errors import InputError
from trimtab.launch.interfaces import network_environment

PROGRAM = """
import json, os, sys
import psutil, torch, torch.distributed as dist
from trimtab.core.communicators import RankNetwork, settings_of
from trimtab.launch.runtime.groups import make_group

rank, store, near, far = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
os.environ["GLOO_SOCKET_IFNAME"] = far
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def addresses():
    found = psutil.Process().net_connections(kind="tcp")
    return {c.laddr.ip for c in found if c.status == "ESTABLISHED"}

def seen(islands):
    networks = [
        RankNetwork(first_rank=r, num_ranks=1, island=islands[r], rdma=False,
                    interface=near, far_interface=far)
        for r in range(2)
    ]
    before = {c.fd for c in psutil.Process().net_connections(kind="tcp")}
    make_group([0, 1], settings_of([0, 1], networks))
    return sorted(
        {c.laddr.ip for c in psutil.Process().net_connections(kind="tcp")
         if c.fd not in before and c.status == "ESTABLISHED"}
    )

print(json.dumps({"inside": seen("aa"), "across": seen("ab"),
                  "left": os.environ["GLOO_SOCKET_IFNAME"]}))
dist.barrier()
dist.destroy_process_group()
"""


def other_interface() -> tuple[str, str]:
    """An interface besides the loopback that is up, and its address."""
    for name, stats in psutil.net_if_stats().items():
        if stats.isup and name != "lo":
            for address in psutil.net_if_addrs().get(name, ()):
                if address.family == socket.AF_INET:
                    return name, address.address
    pytest.skip("this machine has no network interface besides the loopback")


@pytest.mark.workers
def test_groups_inside_an_island_and_across_use_different_interfaces(tmp_path: Path) -> None:
    import subprocess

    far, address = other_interface()
    command = [sys.executable, "-c", PROGRAM]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), "lo", far],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    said = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    for one in said:
        assert one == {"inside": ["127.0.0.1"], "across": [address], "left": far}


def test_an_interface_that_is_not_there_is_named() -> None:
    network = RankNetwork(
        first_rank=0, num_ranks=1, island="far", rdma=False, interface="nosuch0"
    )
    with pytest.raises(InputError, match=r"nics\.interface: .*'nosuch0'.*'far'.* has .*lo"):
        network_environment(network)
