import importlib.metadata
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from trimtab.orchestrator.cli.main import main

COMMANDS = (
    "init", "doctor", "calibrate", "demo", "plan", "plan-step", "plan-paths", "topology",
    "explain", "capacity", "validate", "submit", "cancel", "status", "logs", "list",
    "dashboard", "report", "compare",
)  # fmt: skip


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f" {command} " in text


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: trimtab" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"trimtab {command}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = importlib.metadata.version("trimtab")
    assert capsys.readouterr().out == f"trimtab {version}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plann"], "error: No such command 'plann'"),
        (["plan"], "error: Missing argument 'JOB'"),
        (["plan", "--jso"], "error: No such option: --jso"),
        (["plan", "nowhere.yaml"], "error: nowhere.yaml: no such file"),
        (["plan-step", "--gpus", "many"], "error: Invalid value for '--gpus'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    argv: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_interrupted_command_says_so_and_ends_with_130(
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = Path(__file__).parents[1] / "data" / "skippipe" / "n06_s4_skip50.instance.json"
    assert main(["plan-paths", str(case), "--time-limit", "0"]) == 0  # all is compiled now
    capsys.readouterr()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        assert main(["plan-paths", str(case), "--time-limit", "60"]) == 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    captured = capsys.readouterr()
    assert captured.err == "error: interrupted\n"
    assert captured.out == ""


def test_shell_completion_is_offered() -> None:
    program = "import sys; from trimtab.orchestrator.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "_TRIMTAB_COMPLETE": "complete_bash",
            "COMP_WORDS": "trimtab pla",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["plan", "plan-step", "plan-paths"]


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from trimtab.orchestrator.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'numpy', 'omegaconf', 'pulp', 'starlette', 'wandb', 'sqlite3'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
