import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.schemas import PLAN_SCHEMA

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = str(CONFIGS / "llama-3-8b.yaml")


def _plan(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["plan", *argv, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize(
    "name", ["llama-3-8b", "llama-3.1-405b", "mixtral-8x7b", "gpt-7b", "gpt-30b"]
)
def test_the_json_follows_its_schema(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = _plan(capsys, str(CONFIGS / f"{name}.yaml"), "training.global_batch_seqs=64")
    jsonschema.validate(document, PLAN_SCHEMA)


def test_the_time_parts_add_up_and_the_mfu_follows(capsys: pytest.CaptureFixture[str]) -> None:
    forecast = _plan(capsys, LLAMA)["forecast"]
    assert sum(part["seconds"] for part in forecast["parts"]) == pytest.approx(
        forecast["step_s"]
    )
    rate = forecast["model_flops"] / forecast["step_s"] / 16
    assert forecast["mfu"] == pytest.approx(rate / 989.4e12)
    assert forecast["tokens_per_s_per_gpu"] == pytest.approx(forecast["tokens_per_s"] / 16)
    for stage in forecast["memory"]:
        parts = ("weights", "gradients", "optimizer", "activations", "workspace")
        assert stage["total_bytes"] == sum(stage[f"{part}_bytes"] for part in parts)


def test_overrides_and_fixed_degrees_reach_the_planner(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = _plan(capsys, LLAMA, "training.global_batch_seqs=32", "--fix", "tp=4")
    assert document["batch"]["num_sequences"] == 32
    assert document["layout"]["tp"] == 4


def test_given_lengths_are_planned_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lengths = tmp_path / "lengths.txt"
    lengths.write_text("100\n200\n300\n400\n")
    document = _plan(
        capsys,
        LLAMA,
        "training.global_batch_seqs=4",
        "--lengths",
        str(lengths),
        "--fix",
        "cp=1",
    )
    assert document["forecast"]["num_tokens"] == 1000
    assert document["batch"]["note"].startswith("given: the first 4 sequences")


def test_the_tables_show_the_layout_the_parts_and_what_was_ruled_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", str(CONFIGS / "llama-3.1-405b.yaml")]) == 0
    text = capsys.readouterr().out
    for expected in (
        "batch: assumed: 1024 sequences of data.max_seq_tokens = 8192",
        "Step forecast",
        "tokens/s/GPU",
        "of the dense bf16 peak, 989 TFLOP/s a GPU",
        "model FLOPs = 6 x matmul parameters x tokens",
        "\n\nMemory of the fullest rank of each stage, in GiB",
        "Next best layouts",
        "Ruled out",
        "short by",
    ):
        assert expected in text


def test_the_tables_fit_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", LLAMA, "--fix", "cp=2"]) == 0
    text = capsys.readouterr().out
    assert "a micro-batch" in text
    assert "\n\nnothing ruled out" in text
    lines = text.splitlines()
    heading = next(line for line in lines if "grads" in line)
    stage = next(line for line in lines if line.startswith("0 "))
    assert len(heading.rstrip()) <= 80
    assert "GiB" not in stage


def test_without_a_peak_the_mfu_is_blank_with_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    published = (CONFIGS / "profiles" / "flexsp_7b_a100.json").read_text()
    coefficients = json.loads(published) | {"hidden": 128, "num_layers": 2}
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(coefficients))
    job = str(CONFIGS / "demo.yaml")
    assert main(["plan", job, f"profile={profile}", "layout=null", "num_ranks=8"]) == 0
    assert "MFU -\nno MFU: the peak of the device at fp32 is unknown" in capsys.readouterr().out


def test_text_of_the_user_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", LLAMA, "name='[/red] [bold]x'", "cluster.name='[/b]'"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("[/red] [bold]x: llama-3-8b")
    assert "([/b])" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["training.nosuch=1"], "training.nosuch: unknown key 'nosuch'"),
        (["--fix", "tp"], "--fix: expected FIELD=VALUE, e.g. tp=8, got 'tp'"),
        (["--fix", "tpp=2"], "did you mean 'tp'?"),
        (["--fix", "tp=0"], "expected a whole number >= 1, got 0"),
        (["--lengths", "nowhere.txt"], "nowhere.txt: no such file"),
        (["model=models/llama-3-70b.yaml"], "models/llama-3-70b.yaml: no such file"),
        ([f"model={CONFIGS}/models/llama-3.1-405b.yaml"], "short by"),
        (["cluster.nodes[0].nics[0].gbit_per_s=nan"], "nics[0].gbit_per_s: expected"),
        (["cluster.nodes[0].nics[0].gbit_per_s=-400"], "a finite number > 0, got -400"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", LLAMA, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
