"""`trimtab explain`: of a job, and of a plan in a file."""

import json
from pathlib import Path

import pytest

from trimtab.orchestrator.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = str(CONFIGS / "llama-3.1-405b.yaml")


def test_a_job_and_its_plan_are_explained_alike(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["plan", LLAMA, "--json"]) == 0
    plan = capsys.readouterr().out
    path = tmp_path / "plan.json"
    path.write_text(plan)
    assert main(["explain", str(path), "--json"]) == 0
    of_plan = json.loads(capsys.readouterr().out)
    assert main(["explain", LLAMA, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == of_plan
    document = json.loads(plan)
    for other, entry in zip(of_plan["alternatives"], document["alternatives"], strict=True):
        slower_s = entry["forecast"]["step_s"] - document["forecast"]["step_s"]
        assert other["slower_s"] == pytest.approx(slower_s)
        told = sum(each["seconds"] for each in other["differences"])
        assert told == pytest.approx(slower_s, abs=0.01 * document["forecast"]["step_s"])
    assert sum(each["num_layouts"] for each in of_plan["constraints"]) == len(
        document["rejected"]
    )
    assert 0 < of_plan["faster_compute_fraction"] < 0.1


def test_what_others_gain_and_lose_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", LLAMA]) == 0
    text = capsys.readouterr().out
    assert "matrix products is most of it" in text
    assert "ruled out by memory" in text
    assert "loses" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a JSON document"),
        ("[]", "expected what `trimtab plan JOB --json` prints"),
        ('{"forecast": {"parts": []}}', "expected what `trimtab plan JOB --json` prints"),
    ],
)
def test_what_is_no_plan_is_refused(
    content: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    assert main(["explain", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
