"""`trimtab validate` and `trimtab calibrate FILE.csv` on some published measurements."""

import json
from pathlib import Path

import pytest

from trimtab.orchestrator import rate_fitting, validation
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.rate_books import load_book, shipped_book

SAMPLE = Path(__file__).parents[1] / "data" / "perf" / "measured_steps.csv"
GROUPS = "group_id,row_id,step_time_s\n0,1061,143.31\n0,1063,123.69\n1,1112,\n1,1113,111.89\n"


def test_the_shipped_rates_come_near_published_steps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text(GROUPS)
    assert main(["validate", str(SAMPLE), "--groups", str(groups), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["row_id"]: row for row in document["rows"]}
    assert set(rows["939"]) == {
        "row_id", "predicted_step_s", "low_s", "high_s", "predicted_tflops",
        "predicted_memory_gb", "oom", "in_calibration",
    }  # fmt: skip
    for row in rows.values():
        assert row["low_s"] < row["predicted_step_s"] < row["high_s"]
    tables = document["summary"]["tables"]
    assert tables["megatron_lm_readme"]["mape"] < 0.04
    assert tables["activation_recompute_paper"]["mape"] < 0.04
    assert tables["megascale"]["mape"] < 0.06
    assert document["summary"]["choices"]["best_chosen"] == 1.0
    assert rows["1112"]["oom"]
    assert not rows["1113"]["oom"]
    assert [row_id for row_id, _ in document["summary"]["contradictory"]] == ["1073"]


def test_a_table_forecast_without_the_rows_it_scores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_fitting, "NUM_FOLDS", 3)
    monkeypatch.setattr(validation, "NUM_FOLDS", 3)
    assert main(["validate", str(SAMPLE), "--cross", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["total"]["num_rows"] == 48
    assert summary["tables"]["megatron_lm_readme"]["mape"] < 0.12
    assert main(["validate", str(SAMPLE), "--table-out"]) == 0
    assert "all, the unforecast as 100 %" in capsys.readouterr().out


def test_rates_are_fitted_to_a_table_and_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rate_fitting, "NUM_FOLDS", 2)
    out = tmp_path / "rates.json"
    assert main(["calibrate", str(SAMPLE), "--out", str(out)]) == 0
    assert "A100 megatron-lm" in capsys.readouterr().out
    book = load_book(out)
    assert "measured_steps.csv" in book.evidence
    assert book.find("A100-80GB", engine="megatron-lm").num_rows > 20
    assert main(["validate", str(SAMPLE), "--rates", str(out)]) == 0
    job = Path(__file__).parents[2] / "configs" / "llama-3-8b.yaml"
    assert main(["plan", str(job), "--rates", str(out)]) == 0
    assert "80 % interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["validate", "no.csv"], "no.csv: expected a table (CSV) of measured steps"),
        (["validate", str(SAMPLE), "--cross", "--table-out"], "expected one of --rates"),
        (["validate", str(SAMPLE), "--rates", str(SAMPLE)], "expected a JSON document"),
        (["validate", str(SAMPLE), "--groups", str(SAMPLE)], "expected the columns group_id"),
        (["plan", "configs/llama-3-8b.yaml", "--price", "nan"], "--price: expected a finite"),
        (["plan", "configs/llama-3-8b.yaml", "--price", "-1"], "--price: expected a finite"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_shipped_rates_say_what_they_rest_on() -> None:
    book = shipped_book()
    assert book.evidence
    for entry in book.entries:
        assert entry.num_rows > 0
        assert entry.low_log < 0 < entry.high_log
    assert book.find("NVIDIA H100 SXM5 80GB", engine="megatron-core").family == "H100"
    assert book.find("H200-141GB", engine="megatron-core").family == "H100"
    assert book.find("Z9000").family == ""
    vtrain = book.find("A100-80GB", engine="megatron-deepspeed", source="vtrain")
    assert vtrain.source == "vtrain"
    assert book.find("A100-80GB", engine="megatron-deepspeed", source="other").source == ""
