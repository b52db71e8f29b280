"""From timed operations to rates, and to a forecast."""

from dataclasses import replace

import pytest

from trimtab.core.cluster import Precision
from trimtab.core.device_speed import DeviceSpeed, SpeedKind, Timed
from trimtab.core.errors import InputError
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.device_rates import device_rates, fragment
from trimtab.orchestrator.rate_books import shipped_book


def timed(kind: SpeedKind, precision: Precision, *, amount: float, seconds: float) -> Timed:
    return Timed(
        kind=kind, what="", precision=precision, amount=amount, seconds=seconds, spread=0.1
    )


H100 = DeviceSpeed(
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=85_000_000_000,
    num_devices=8,
    timed=(
        timed("product", "bf16", amount=989e12, seconds=2.0),
        timed("product", "bf16", amount=989e12, seconds=4.0),
        timed("product", "bf16", amount=989e12, seconds=1.25),
        timed("product", "fp8", amount=1979e12, seconds=2.0),
        timed("attention", "bf16", amount=989e12, seconds=2.5),
        timed("traffic", "bf16", amount=3350e9, seconds=1.25),
        timed("layer", "fp32", amount=1, seconds=3e-4),
        timed("all-reduce", "fp32", amount=1e3, seconds=2e-5),
        timed("all-reduce", "fp32", amount=450e9, seconds=1.5),
    ),
    skipped=(),
)


def test_a_known_gpu_is_measured_against_its_datasheet() -> None:
    found = device_rates(H100, known=shipped_book())
    assert found.is_datasheet
    (entry,) = found.book.entries
    known = shipped_book().find("H100-80GB")
    measured = {
        "matmul_efficiency": 0.5,
        "fp8_efficiency": 0.5,
        "attention_efficiency": 0.4,
        "elementwise_factor": 1.25,
        "launch_s": 3e-4,
        "tp_latency_s": 2e-5,
        "tp_factor": 1.5,
    }
    for name, value in measured.items():
        assert getattr(entry.rates, name) == pytest.approx(value), name
    others = {name: getattr(known.rates, name) for name in measured}
    assert replace(entry.rates, **others) == known.rates
    assert entry.low_log < known.low_log
    assert entry.high_log > known.high_log
    assert "matmul_efficiency, " in found.book.evidence
    assert f"the other constants are those of {known.name}" in found.book.evidence
    assert found.book.find("H100-80GB") == entry
    with pytest.raises(InputError, match="rates: none for the device 'A100-80GB'"):
        found.book.find("A100-80GB")


def test_an_unknown_device_is_its_own_datasheet() -> None:
    own = replace(H100, name="CPU process", timed=H100.timed[4:6])
    own = replace(
        own,
        timed=(
            *own.timed,
            timed("product", "bf16", amount=3e10, seconds=1.0),
            timed("product", "bf16", amount=2e10, seconds=1.0),
            timed("layer", "fp32", amount=1, seconds=3e-4),
        ),
        skipped=("all-reduce: there is one device",),
    )
    found = device_rates(own, known=shipped_book())
    assert not found.is_datasheet
    assert found.gpu.peak_flop_per_s("bf16") == 3e10
    assert found.book.entries[0].rates.matmul_efficiency == pytest.approx(2.5 / 3)
    assert "all-reduce: there is one device" in found.book.evidence
    assert "peak_tflop_per_s: {bf16: 0.03}" in fragment(found.gpu)


def test_a_job_and_the_device_are_not_calibrated_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["calibrate", "job.yaml", "--device"]) == 2
    error = capsys.readouterr().err
    assert error == "error: expected a job file, --from-run RUN or --device, one of them\n"
