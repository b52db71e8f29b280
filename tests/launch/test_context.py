import pytest

from trimtab.launch.runtime.context import is_same_device


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
