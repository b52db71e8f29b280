import socket

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.errors import JobFailedError
from trimtab.core.units import GIB
from trimtab.launch.runtime.context import (
    RankContext,
    described_gpu,
    is_same_device,
    join,
)


@pytest.mark.parametrize(
    ("found", "described", "same"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5 80GB", True),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 SXM4 40GB", True),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA H100 SXM5 80GB", False),
        ("NVIDIA GH200 480GB", "H200", False),
        ("NVIDIA L40S", "L4", False),
        ("some device", "NVIDIA H100 SXM5 80GB", False),
    ],
)
def test_a_peak_counts_only_for_the_device_that_is_there(
    found: str, described: str, same: bool
) -> None:
    assert is_same_device(found, described) is same


def test_a_device_counts_on_whichever_nodes_the_cluster_file_has_it() -> None:
    link = Link(bytes_per_s=1e9, latency_s=1e-6)
    nic = NicSpec(kind="ethernet", count=1, bytes_per_s=1e9, latency_s=1e-6)
    gpus = [
        GpuSpec(name=name, memory_bytes=GIB, memory_bytes_per_s=1e9)
        for name in ("NVIDIA A100 SXM4 40GB", "NVIDIA H100 SXM5 80GB")
    ]
    nodes = tuple(
        NodeSpec(
            name=gpu.name, count=1, gpu=gpu, gpus_per_node=8, intra_node=link, nics=(nic,),
            island="here",
        )
        for gpu in gpus
    )  # fmt: skip
    cluster = ClusterSpec(name="mixed", nodes=nodes)
    assert described_gpu("NVIDIA H100 80GB HBM3", cluster) == gpus[1]
    assert described_gpu("NVIDIA L40S", cluster) is None


def test_a_port_that_is_taken_fails_in_one_line_and_may_be_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        context = RankContext(rank=0, world_size=1, local_rank=0, rendezvous=url)
        with pytest.raises(JobFailedError, match="EADDRINUSE") as caught:
            join(context)
    assert f"does not meet the others at {url}: " in str(caught.value)
    assert "\n" not in str(caught.value)
