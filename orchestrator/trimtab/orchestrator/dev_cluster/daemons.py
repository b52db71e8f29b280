"""The daemons of a development cluster: started, remembered in its folder, ended by us only.

`daemons.json` holds every process that was started, with its start time: a later process that
happens to have the same number is never mistaken for it.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from trimtab.core import serde
from trimtab.core.errors import InputError, JobFailedError
from trimtab.orchestrator.liveness import ProcessId

_FILE: Final = "daemons.json"
_POLL_S: Final = 0.1
_END_GRACE_S: Final = 10.0
_PORTS: Final = range(20_000, 32_000)
"""Below those that the kernel gives to outgoing connections, so that a daemon that was killed
finds its port free again. Source: ip(7), ip_local_port_range."""


class Daemons:
    """The processes of one cluster, by name."""

    def __init__(self, folder: Path) -> None:
        """`folder`: everything of the cluster lies there.

        Raises:
            InputError: Its record of processes is damaged.
        """
        self._folder = folder
        self._processes = _read(folder / _FILE)

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of those that run, in the order in which they were started."""
        return tuple(name for name, process in self._processes.items() if process.is_alive)

    def pid(self, name: str) -> int | None:
        """The process of a daemon that runs."""
        process = self._processes.get(name)
        return process.pid if process is not None and process.is_alive else None

    def start(
        self, name: str, argv: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a daemon that stays in the foreground; its output goes to `log/NAME.log`.

        Raises:
            JobFailedError: It could not be started.
        """
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as file:
                process = subprocess.Popen(
                    argv,
                    env={**os.environ, **(environment or {})},
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise JobFailedError(f"{argv[0]} could not be started: {error}") from error
        self._processes.pop(name, None)  # the new one is the last
        self._processes[name] = ProcessId.of(process.pid)
        self._write()
        # Reaped here where this process lives longer, so that no zombie is left behind.
        threading.Thread(target=process.wait, name=f"{name} reaper", daemon=True).start()

    def await_answer(
        self, name: str, answers: Callable[[], bool], *, what: str, timeout_s: float
    ) -> None:
        """Return once a daemon answers.

        Raises:
            JobFailedError: It has died, or does not answer in time; with its last words.
        """
        came = _becomes_true(lambda: self.pid(name) is None or answers(), timeout_s)
        if came and self.pid(name) is not None:
            return
        end = "has died" if self.pid(name) is None else f"does not answer in {timeout_s:.0f} s"
        raise JobFailedError(
            f"{what}: {name} {end}; the end of {self._log(name)}: {self.last_words(name)}"
        )

    def end(self, name: str) -> None:
        """SIGTERM, and SIGKILL where that does not help; returns when it has ended."""
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            _becomes_true(lambda: self.pid(name) is None, _END_GRACE_S)
        self.kill(name)

    def kill(self, name: str) -> None:
        """SIGKILL, as a node's death."""
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while self.pid(name) is not None:
                time.sleep(_POLL_S)
        self._processes.pop(name, None)
        self._write()

    def last_words(self, name: str) -> str:
        """The last lines of a daemon's log."""
        log = self._log(name)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "; ".join(lines[-3:]) or "it said nothing"

    def _log(self, name: str) -> Path:
        return self._folder / "log" / f"{name}.log"

    def _write(self) -> None:
        document = {
            name: serde.to_document(process) for name, process in self._processes.items()
        }
        draft = self._folder / f".{_FILE}"
        draft.write_text(json.dumps(document, indent=2))
        draft.replace(self._folder / _FILE)


def wait_until(is_true: Callable[[], bool], *, what: str, timeout_s: float) -> None:
    """Return once `is_true`.

    Raises:
        JobFailedError: It has not become so in time.
    """
    if not _becomes_true(is_true, timeout_s):
        raise JobFailedError(f"not so after {timeout_s:.0f} s: {what}")


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on now, at random: clusters may start at the same time.

    Raises:
        JobFailedError: There are not so many.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            found.append(port)
    if len(found) < count:
        raise JobFailedError(f"no {count} free ports from {_PORTS.start} to {_PORTS.stop}")
    return found


def _becomes_true(is_true: Callable[[], bool], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _read(path: Path) -> dict[str, ProcessId]:
    try:
        document = json.loads(path.read_text())
        return {name: serde.from_document(ProcessId, each) for name, each in document.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, InputError) as error:
        raise InputError(
            f"{path}: damaged: {error}; end what the cluster runs by hand, then remove the "
            "folder"
        ) from error
