import pytest

from trimtab.core.devices import DEVICES, device
from trimtab.core.errors import InputError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a100", "A100-80GB"),
        ("A100-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ('A100-80GB ("Ampere")', "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("gb200", "GB200"),
        ("B200", "B200"),
        ("NVIDIA GeForce RTX 4090", "RTX4090-24GB"),
        ("H200", "H200-141GB"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
    ],
)
def test_a_device_is_known_however_it_is_spelled(name: str, expected: str) -> None:
    assert device(name).spec.name == expected


def test_every_device_is_found_by_its_own_name() -> None:
    for each in DEVICES:
        assert device(each.spec.name) is each


@pytest.mark.parametrize("name", ["", "cpu", "Z9000", "A1000"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown device .*; known: V100-32GB"):
        device(name)
