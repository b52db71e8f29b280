import json
from pathlib import Path

import pytest

from trimtab.core import serde
from trimtab.core.timeline import LaneTimeline
from trimtab.orchestrator.cli.main import main

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "flexsp_7b_a100.json"


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    lengths = tmp_path / "lengths.txt"
    lengths.write_text(
        "".join(f"{length}\n" for length in [20_000, 9_000, *range(300, 2_300, 50)])
    )
    argv = ["plan-step", "--profile", str(PROFILE), "--lengths", str(lengths), "--gpus", "16"]
    assert main([*argv, "--pp", "2", "--time-limit", "0", "--json"]) == 0
    path = tmp_path / "plan.json"
    path.write_text(capsys.readouterr().out)
    return path


def test_a_plan_is_drawn_and_written_in_every_form(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg, html, trace = (tmp_path / name for name in ("t.svg", "t.html", "t.json"))
    forms = ["--svg", str(svg), "--html", str(html), "--trace", str(trace)]
    assert main(["timeline", str(plan), *forms]) == 0
    out = capsys.readouterr().out
    assert "micro-batches through 2 stages, 1F1B" in out
    assert out.count("wrote ") == 3
    assert "stage 1" in svg.read_text()
    assert svg.read_text() in html.read_text()
    assert json.loads(trace.read_text())["traceEvents"]


def test_the_json_is_the_timeline_and_ends_with_the_step(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["timeline", str(plan), "--json"]) == 0
    timeline = serde.from_json(LaneTimeline, capsys.readouterr().out)
    step_ms = json.loads(plan.read_text())["step_ms"]
    assert 1e3 * timeline.end_s == pytest.approx(step_ms)


@pytest.mark.parametrize(
    ("text", "argv", "named"),
    [
        ("{", [], "expected the JSON of a plan"),
        ("{}", [], "expected what `trimtab plan-step --json`"),
        (None, [], "no such file"),
        ("{}", ["--lanes", "0"], "--lanes: expected a whole number >= 1"),
    ],
)
def test_bad_input_is_one_line(
    text: str | None,
    argv: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    assert main(["timeline", str(path), *argv]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_folder_that_is_not_there_is_said(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["timeline", str(plan), "--svg", str(tmp_path / "no" / "t.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err
