"""Real processes that outlive, or do not outlive, who started them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set

from trimtab.launch import tether


def test_the_command_takes_the_place_of_the_tether(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getpid(), sys.argv[1:])"
    argv = tether.command([sys.executable, "-c", program, "a b", "$(c)", ""])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == f"{process.pid} ['a b', '$(c)', '']\n"


def test_a_process_is_asked_to_end_when_its_starter_dies(tmp_path: Path) -> None:
    starter = (
        "import os, subprocess\n"
        "from trimtab.launch import tether\n"
        "child = subprocess.Popen(tether.command(['sleep', '600']))\n"
        "print(child.pid, flush=True)\n"
        "while 'sleep' not in open(f'/proc/{child.pid}/comm').read(): pass\n"
        "os.kill(os.getpid(), 9)"
    )
    with (tmp_path / "child").open("w+") as output:
        subprocess.run([sys.executable, "-c", starter], stdout=output, check=False)
        output.seek(0)
        child = int(output.read())
    while psutil.pid_exists(child) and psutil.Process(child).status() != "zombie":
        time.sleep(0.02)


def test_a_process_whose_starter_is_gone_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", tether.__file__, "1", "touch", str(tmp_path / "x")]
    assert os.getpid() != 1
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        "the process that started this one has died\n",
    )
    assert not (tmp_path / "x").exists()


def test_a_command_that_is_not_there_is_told() -> None:
    ended = subprocess.run(
        tether.command(["/no/such program"]), capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (
        127,
        "cannot start '/no/such program': No such file or directory\n",
    )
