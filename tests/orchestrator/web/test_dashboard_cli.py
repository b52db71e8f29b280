import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.web.server import bind

COMMAND = [sys.executable, "-m", "trimtab.orchestrator.cli.main", "dashboard"]


@contextmanager
def running(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--no-open", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def url_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Dashboard: "):
            return line.split()[1]
    raise AssertionError("the dashboard ended without printing its address")


def test_a_busy_port_ends_with_one_line_and_exit_2(
    sample: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        code = main(["dashboard", "--runs-dir", str(sample.root), "--port", port, "--no-open"])
    assert code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"error: --port: cannot listen on port {port} of 127.0.0.1: Address already in use; "
        "give another with --port (0 takes any free one)\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_one_line_and_exit_2(
    host: str, sample: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--runs-dir", str(sample.root), "--host", host, "--port", "0", "--no-open"]
    assert main(["dashboard", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: --host: {host!r} is no address of this machine\n"


def test_an_unknown_run_is_refused_before_anything_is_served(
    sample: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "local://no-such-run", "--runs-dir", str(sample.root)]) == 102
    assert "there is no run 'no-such-run'" in capsys.readouterr().err


def test_a_run_with_a_damaged_event_store_is_refused_before_anything_is_served(
    sample: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (sample.dir.path / "events.db").write_text("garbage\n")
    arguments = [sample.job_id, "--runs-dir", str(sample.root), "--port", "0", "--no-open"]
    assert main(["dashboard", *arguments]) == 2
    assert "events.db: expected an event store, but" in capsys.readouterr().err


def test_without_a_run_it_lists_runs_and_shows_the_newest_until_ctrl_c(sample: Any) -> None:
    sample.finish()
    with running("--runs-dir", str(sample.root)) as process:
        url = url_of(process)
        assert url.endswith(f"/runs/{sample.job_id}")
        with urllib.request.urlopen(url, timeout=30) as response:
            assert b"<title>Trimtab</title>" in response.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == ""


def test_a_run_directory_can_lie_anywhere(sample: Any) -> None:
    with running(str(sample.dir.path)) as process:
        assert url_of(process).endswith(f"/runs/{sample.job_id}")


def test_a_folder_without_runs_shows_the_empty_list(tmp_path: Path) -> None:
    with running("--runs-dir", str(tmp_path)) as process:
        address = url_of(process)
        with urllib.request.urlopen(f"{address}api/runs", timeout=30) as response:
            assert response.read() == b'{"runs":[]}'


def test_another_address_than_loopback_is_warned_of(sample: Any) -> None:
    with running("--runs-dir", str(sample.root), "--host", "0.0.0.0") as process:
        url_of(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert errors.startswith("warning: everyone who can reach 0.0.0.0 can read these runs")


def test_without_the_extra_it_names_it(sample: Any) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from trimtab.orchestrator.cli.main import main\n"
        f"sys.exit(main(['dashboard', '--runs-dir', {str(sample.root)!r}]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: the dashboard needs the package uvicorn; pip install 'trimtab[monitor]'\n"
    )
