"""The micro-benchmark, for real on this machine's CPU, with tiny operations."""

import pytest

torch = pytest.importorskip("torch")

from trimtab.core.device_speed import DeviceSpeed  # noqa: E402
from trimtab.launch.runtime.device_speed import Sizes, measure_device  # noqa: E402

TINY = Sizes(
    products=((64, 64, 64), (128, 64, 64)),
    attention=((64, 2, 16),),
    traffic_elements=2**16,
    all_reduce_elements=(2**8, 2**14),
    least_s=0.01,
)


@pytest.fixture(scope="module")
def speed() -> DeviceSpeed:
    told: list[str] = []
    threads = torch.get_num_threads()
    measured = measure_device(tell=told.append, sizes=TINY)
    assert torch.get_num_threads() == threads
    assert any("matrix products" in each for each in told)
    return measured


def test_every_kind_of_operation_is_timed(speed: DeviceSpeed) -> None:
    for precision in ("bf16", "fp32"):
        assert len(speed.of("product", precision)) == 2
        assert len(speed.of("attention", precision)) == 1
        assert len(speed.of("traffic", precision)) == 1
    assert len(speed.of("layer")) == 1
    assert all(each.seconds > 0 and each.spread >= 0 for each in speed.timed)
    assert speed.memory_bytes > 2**28


def test_ranks_of_this_machine_reduce_together(speed: DeviceSpeed) -> None:
    small, large = speed.of("all-reduce")
    assert small.amount < large.amount
    assert "2 ranks" in small.what


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU may have FP8 tensor cores")
def test_what_a_cpu_cannot_do_is_said(speed: DeviceSpeed) -> None:
    assert speed.name == "CPU process"
    assert any(reason.startswith("fp8 products: ") for reason in speed.skipped)
    assert not speed.of("product", "fp8")
