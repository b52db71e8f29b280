"""`trimtab capacity`: sizes, devices, phases, limits, money and energy of a whole training."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.orchestrator.cli.capacity import sizes_of
from trimtab.orchestrator.cli.main import main

LLAMA = str(Path(__file__).parents[2] / "configs" / "llama-3-8b.yaml")
DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")


def swept(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["capacity", LLAMA, "--json", *words]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("64:512", [64, 128, 256, 512]),
        ("64:500", [64, 128, 256]),
        ("64:256:64", [64, 128, 192, 256]),
        ("8,24,16", [8, 24, 16]),
        ("7", [7]),
    ],
)
def test_sizes(text: str, sizes: list[int]) -> None:
    assert sizes_of(text) == sizes


def test_more_gpus_take_less_time_and_more_gpu_hours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = swept(capsys, "--gpus", "16:256", "--tokens", "1T", "--price", "2")
    rows = document["rows"]
    assert [row["num_gpus"] for row in rows] == [16, 32, 64, 128, 256]
    for fewer, more in itertools.pairwise(rows):
        assert more["wall_s"] < fewer["wall_s"]
        assert more["goodput"] < fewer["goodput"] < 1
    for row in rows:
        assert row["low_s"] < row["wall_s"] < row["high_s"]
        assert row["gpu_hours"] == pytest.approx(row["wall_s"] * row["num_gpus"] / 3600)
        assert row["money"] == pytest.approx(2 * row["gpu_hours"])
        assert row["energy_kwh"] == pytest.approx(row["gpu_hours"] * 0.7 * 1.2)
        tokens_per_s = row["tokens_per_s_per_gpu"] * row["num_gpus"]
        assert row["train_s"] == pytest.approx(1e12 / tokens_per_s)
    assert document["answers"]["fastest"]["num_gpus"] == 256


def test_limits_choose_the_cheapest_that_is_in_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--gpus", "16:256", "--tokens", "1T", "--price", "2", "--deadline", "60d")
    document = swept(capsys, *words)
    kept = [row["num_gpus"] for row in document["rows"] if row["keeps_limits"]]
    assert kept
    assert kept != [16, 32, 64, 128, 256]
    assert document["answers"]["cheapest"]["num_gpus"] == min(kept)
    none = swept(capsys, *words, "--budget", "1")
    assert none["answers"] == {}


def test_devices_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    rows = swept(capsys, "--gpus", "64", "--gpu-types", "a100,h100,b200")["rows"]
    assert [row["gpu"] for row in rows] == ["A100-80GB", "H100-80GB", "B200"]
    times = [row["wall_s"] for row in rows]
    assert times == sorted(times, reverse=True)


def test_a_long_phase_costs_more_than_its_share(capsys: pytest.CaptureFixture[str]) -> None:
    whole = swept(capsys, "--gpus", "128")["rows"][0]
    phases = ("--phase", "0.9:8192", "--phase", "0.1:131072:64")
    two = swept(capsys, "--gpus", "128", *phases)["rows"][0]
    assert len(two["layouts"]) == 2
    assert two["train_s"] > 1.02 * whole["train_s"]


def test_without_failures_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    row = swept(capsys, "--gpus", "64", "--failures-per-gpu-day", "0")["rows"][0]
    assert row["goodput"] == 1
    assert row["checkpoint_every_s"] is None


def test_a_size_on_which_nothing_fits_is_a_row_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = swept(capsys, "--gpus", "1,16")["rows"]
    assert "memory" in rows[0]["reason"]
    assert rows[0]["wall_s"] is None
    assert rows[1]["reason"] is None


def test_the_table_and_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "capacity.html"
    words = ["--gpus", "1,16,32", "--price", "2", "--html", str(page)]
    assert main(["capacity", LLAMA, *words]) == 0
    text = capsys.readouterr().out
    assert "Llama 3 405B, arXiv:2407.21783" in text
    assert "none runs" in text
    assert all(len(line) <= 96 for line in text.splitlines())
    content = page.read_text()
    assert content.count("<svg") == 3
    assert "http" not in content


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus: expected sizes as"),
        (["--gpus", "64:8"], "--gpus: expected sizes as"),
        (["--gpus", "many"], "--gpus: expected sizes as"),
        (["--gpus", "8:8:0"], "--gpus: expected sizes as"),
        (["--gpus", "1:100000:1"], "--gpus: expected at most 200 sizes"),
        (["--gpu-types", "z9000"], "gpu: unknown device 'z9000'; known: V100"),
        (["--gpu-types", "v100"], "training.precision: the V100-32GB has no bf16"),
        (["--deadline", "soon"], "--deadline: expected a time as 48h"),
        (["--tokens", "lots"], "--tokens: expected a number"),
        (["--tokens", "0"], "--tokens: expected a number"),
        (["--price", "-1"], "--price: expected a finite number >= 0"),
        (["--price", "nan"], "--price: expected a finite number >= 0"),
        (["--budget", "5"], "--budget: needs the price"),
        (["--failures-per-gpu-day", "nan"], "failures_per_gpu_day: expected"),
        (["--checkpoint-s", "0"], "checkpoint_s: expected a finite number > 0"),
        (["--checkpoint-every", "often"], "--checkpoint-every: expected seconds or auto"),
        (["--restart-s", "-3"], "restart_s: expected"),
        (["--power-w", "0"], "--power-w: expected"),
        (["--pue", "0.5"], "--pue: expected a number from 1 to 10"),
        (["--phase", "half:8192"], "--phase: expected FRACTION:TOKENS"),
        (["--phase", "0.5:8192"], "--phase: expected fractions that add up to 1, got 0.5"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capacity", LLAMA, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_cluster_without_gpus_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", DEMO]) == 2
    assert "has no GPU; name a cluster file" in capsys.readouterr().err
