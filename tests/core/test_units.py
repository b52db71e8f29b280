import pytest

from trimtab.core import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (850e-6, "850 us"),
        (0.0123, "12.3 ms"),
        (2.5, "2.5 s"),
        (200, "3 min 20 s"),
        (9_000, "2.5 h"),
        (3 * 86_400, "3.0 d"),
    ],
)
def test_a_duration_reads_in_its_unit(seconds: float, text: str) -> None:
    assert units.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(512, "512 B"), (3.2 * 2**20, "3.2 MiB"), (79.6 * 2**30, "79.6 GiB"), (2**41, "2.0 TiB")],
)
def test_memory_reads_in_binary_units(num_bytes: float, text: str) -> None:
    assert units.memory_text(num_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(950, "950"), (12_500, "12.5 k"), (7e9, "7 B"), (405.85e9, "406 B"), (1.2e12, "1.2 T")],
)
def test_a_count_reads_in_short_scale(count: float, text: str) -> None:
    assert units.count_text(count) == text


def test_a_compute_rate_reads_in_teraflops_from_one_up() -> None:
    assert units.flop_rate_text(312e12) == "312 TFLOP/s"
    assert units.flop_rate_text(45.1e9) == "45.1 GFLOP/s"


def test_a_gigabit_is_an_eighth_of_a_gigabyte() -> None:
    assert 8 * units.GBIT == units.GB
    assert units.GIB == 1_073_741_824


def test_one_of_a_thing_is_no_plural() -> None:
    assert units.counted(1, "wave") == "1 wave"
    assert units.counted(0, "wave") == "0 waves"
    assert units.counted(12_000, "GPU") == "12000 GPUs"
