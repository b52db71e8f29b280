from pathlib import Path

import pytest

from trimtab.launch import facts


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two GPUs as the driver lists them, on a machine without NVIDIA's Python package."""
    for bus in ("0000:07:00.0", "0000:0a:00.0"):
        folder = tmp_path / bus
        folder.mkdir()
        (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:  18\n")
    monkeypatch.setattr(facts, "DRIVER_FOLDER", tmp_path)
    monkeypatch.setattr(facts, "_gpus_by_nvml", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def found() -> tuple[int, str]:
    hello = facts.node_facts(node="n1", sees_run_dir=True)
    return hello.num_gpus, hello.gpu


def test_gpus_are_found_without_nvidias_package(driver: Path) -> None:
    assert len(list(driver.iterdir())) == 2
    assert found() == (2, "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("visible", "number"),
    [("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("1,-1,0", 1), ("GPU-8a1b, GPU-9c", 2)],
)
@pytest.mark.usefixtures("driver")
def test_those_that_cuda_may_use_count(
    visible: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert found()[0] == number


@pytest.mark.usefixtures("driver")
def test_a_machine_without_a_driver_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "DRIVER_FOLDER", tmp_path / "none")
    assert found() == (0, "")
