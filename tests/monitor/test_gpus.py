import pytest

from trimtab.monitor.gpus import GpuSampler


def test_without_a_driver_there_are_no_samples_and_one_reason() -> None:
    sampler = GpuSampler("node-0")
    if not sampler.unavailable_reason:
        pytest.skip("this machine has an NVIDIA driver")
    assert sampler.unavailable_reason.startswith("no GPU samples: ")
    assert sampler.sample(1.0) == ()
    sampler.close()


@pytest.mark.gpu
def test_every_gpu_is_sampled_with_plausible_figures() -> None:
    sampler = GpuSampler("node-0")
    if sampler.unavailable_reason:
        pytest.skip(sampler.unavailable_reason)
    samples = sampler.sample(7.0)
    sampler.close()
    assert [sample.index for sample in samples] == list(range(len(samples)))
    for sample in samples:
        assert sample.time_s == 7.0
        assert sample.host == "node-0"
        assert 0 <= sample.utilization_fraction <= 1
        assert sample.memory_used_bytes > 0
        assert 0 < sample.power_w < 2_000
        assert 0 < sample.temperature_c < 120
