import socket

import pytest

from trimtab.core.errors import JobFailedError
from trimtab.launch.runtime.context import RankContext, is_same_device, join


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


def test_a_port_that_is_taken_fails_in_one_line_and_may_be_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        context = RankContext(rank=0, world_size=1, local_rank=0, rendezvous=url)
        with pytest.raises(JobFailedError, match="EADDRINUSE") as caught:
            join(context)
    assert f"does not meet the others at {url}: " in str(caught.value)
    assert "\n" not in str(caught.value)
