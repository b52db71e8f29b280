"""Real keepers; in the place of the controller, small programs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

RUN = (
    "import signal, sys\n"
    "from trimtab.orchestrator import keeper\n"
    "keeper.MAX_KILLS = 1\n"
    "mine = keeper.Keeper([sys.executable, '-u', '-c', *sys.argv[1:]])\n"
    "for number in keeper.PASSED_ON: signal.signal(number, mine.pass_on)\n"
    "print('ready', flush=True)\n"
    "sys.exit(mine.run())"
)
HEEDS = (
    "import signal, sys, time\n"
    "def heed(number, _): print('heard', number, flush=True); sys.exit(40 + number)\n"
    "for number in (signal.SIGTERM, signal.SIGUSR2): signal.signal(number, heed)\n"
    "time.sleep(float(sys.argv[1]))\n"
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR2))\n"
    "print('up', flush=True)\n"
    "time.sleep(600)"
)


@contextmanager
def keeper_of(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-u", "-c", RUN, program, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        yield keeper


def lines(keeper: subprocess.Popen[str]) -> list[str]:
    """All that is still said."""
    assert keeper.stdout is not None
    return keeper.stdout.read().splitlines()


@pytest.mark.parametrize("code", [0, 1, 2, 93])
def test_the_controllers_own_exit_code_is_the_keepers(code: int) -> None:
    with keeper_of(f"raise SystemExit({code})") as keeper:
        assert keeper.wait() == code
        assert lines(keeper) == []


def test_a_killed_controller_is_started_again(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; mark = Path(sys.argv[1])\n"
        "if mark.exists(): sys.exit(7)\n"
        "mark.touch(); os.kill(os.getpid(), 9)"
    )
    with keeper_of(program, str(tmp_path / "mark")) as keeper:
        assert keeper.wait() == 7
        assert lines(keeper) == [
            "the controller was killed by signal 9; it is started again in 0 s"
        ]


def test_one_that_is_killed_every_time_is_given_up() -> None:
    with keeper_of("import os; os.kill(os.getpid(), 11)") as keeper:
        assert keeper.wait() == 1
        assert lines(keeper) == [
            "the controller was killed by signal 11; it is started again in 0 s",
            "the controller was killed 2 times: given up",
        ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    with keeper_of(HEEDS, "0") as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "up\n"
        keeper.send_signal(number)
        assert keeper.wait() == 40 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signals_wait_for_a_controller_that_is_not_ready(number: signal.Signals) -> None:
    with keeper_of(HEEDS, "1") as keeper:
        keeper.send_signal(number)
        assert keeper.wait() == 40 + number
        assert lines(keeper) == [f"heard {int(number)}"]


def test_a_signal_that_comes_while_no_controller_runs_reaches_the_next(
    tmp_path: Path,
) -> None:
    program = (
        "import os, sys; from pathlib import Path; mark = Path(sys.argv[2])\n"
        "if not mark.exists():\n"
        "    mark.touch(); os.kill(os.getppid(), 15); os.kill(os.getpid(), 9)\n"
    ) + HEEDS
    with keeper_of(program, "0", str(tmp_path / "mark")) as keeper:
        assert keeper.wait() == 40 + signal.SIGTERM
        assert lines(keeper)[-1] == f"heard {int(signal.SIGTERM)}"


def test_a_keeper_outlives_its_terminal_and_hands_on_lock_and_prefix(tmp_path: Path) -> None:
    """The whole program, whose controller here finds no run directory."""
    with (tmp_path / "lock").open("w") as lock:
        descriptor = str(lock.fileno())
        arguments = [str(tmp_path / "no run"), "--lock", descriptor, "--", "srun", "--x=1"]
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "trimtab.orchestrator.keeper", *arguments],
            pass_fds=(lock.fileno(),),
            capture_output=True,
            text=True,
            check=False,
        )
    assert "expected a run directory, but it has no state.json" in ended.stdout
    assert (ended.returncode, ended.stderr) == (102, "")
