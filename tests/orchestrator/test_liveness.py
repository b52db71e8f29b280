import os
import subprocess
import sys
from dataclasses import replace

from trimtab.orchestrator.liveness import ProcessId

PROGRAM = (
    "from trimtab.orchestrator.liveness import ProcessId; import sys\n"
    "me = ProcessId.own(); print(me.host, me.pid, me.started, flush=True); sys.stdin.read()"
)


def test_this_process_is_alive() -> None:
    assert ProcessId.own() == ProcessId.own()
    assert ProcessId.own().is_alive


def test_a_reused_pid_is_not_mistaken() -> None:
    assert not replace(ProcessId.own(), started="another boot:1").is_alive


def test_a_process_of_another_machine_is_trusted() -> None:
    elsewhere = replace(ProcessId.own(), host="another-machine", started="1:1")
    assert elsewhere.is_alive
    assert not elsewhere.is_here


def test_a_process_without_a_start_time_is_found_by_its_pid_alone() -> None:
    assert replace(ProcessId.own(), started="").is_alive


def test_a_dead_process_is_dead_even_before_it_is_reaped() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        host, pid, started = child.stdout.readline().split()
        other = ProcessId(host=host, pid=int(pid), started=started)
        assert other.is_alive
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not other.is_alive
    assert not other.is_alive
