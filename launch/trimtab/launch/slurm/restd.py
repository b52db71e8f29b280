"""Asking slurmrestd, Slurm's own web service, where the environment names one.

`SLURMRESTD` is its address, as for its own command line: `unix:/run/slurmrestd.sock`,
`http://host:6820` or `https://host:6820`. `SLURM_JWT` holds the user's token where the service
wants one (`export $(scontrol token)`).

Source: "Slurm REST API" (rest.html), slurmrestd(8).
"""

import getpass
import http.client
import os
import re
import socket
from collections.abc import Mapping
from typing import Final, Self
from urllib.parse import urlsplit

from trimtab.core.errors import InputError, shown

ADDRESS_VARIABLE: Final = "SLURMRESTD"
_TOKEN_VARIABLE: Final = "SLURM_JWT"  # noqa: S105  the name of one
_TIMEOUT_S: Final = 30.0
_VERSION: Final = re.compile(r"/slurm\\?/v(\d+)\.(\d+)\.(\d+)\\?/jobs\b")


class SlurmRestd:
    """A slurmrestd at an address."""

    def __init__(self, address: str) -> None:
        """Take an address; nothing is asked yet.

        Raises:
            InputError: It has another form.
        """
        self._address = address
        self._jobs_path: str | None = None
        self._connection()  # raises where it is none

    @classmethod
    def of_environment(cls) -> Self | None:
        """The one that the environment names; None where it names none."""
        address = os.environ.get(ADDRESS_VARIABLE)
        return cls(address) if address else None

    def jobs(self) -> str:
        """The document of all jobs that slurmctld knows.

        Raises:
            InputError: It does not answer, or refuses.
        """
        if self._jobs_path is None:
            self._jobs_path = self._newest_jobs_path()
        return self._get(self._jobs_path)

    def _newest_jobs_path(self) -> str:
        versions = [
            tuple(int(number) for number in match.groups())
            for match in _VERSION.finditer(self._get("/openapi/v3"))
        ]
        if not versions:
            raise self._error("it knows no jobs; start it with slurmctld's plugin")
        return f"/slurm/v{'.'.join(map(str, max(versions)))}/jobs"

    def _get(self, path: str) -> str:
        connection = self._connection()
        try:
            connection.request("GET", path, headers=_headers())
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise self._error(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise self._error(f"{path}: {answer.status} {answer.reason}: {text.strip()[:200]}")
        return text

    def _connection(self) -> http.client.HTTPConnection:
        scheme, _, path = self._address.partition(":")
        if scheme == "unix" and path.startswith("/"):
            return _UnixConnection(path)
        parts = urlsplit(self._address)
        host, port = parts.hostname, parts.netloc.rpartition(":")[2]
        if host and port.isdigit() and parts.scheme in ("http", "https"):
            kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
            if parts.scheme == "https":
                kind = http.client.HTTPSConnection
            return kind(host, int(port), timeout=_TIMEOUT_S)
        raise InputError(
            f"{ADDRESS_VARIABLE}: expected unix:/PATH or http://HOST:PORT, got "
            f"{shown(self._address)}"
        )

    def _error(self, words: str) -> InputError:
        return InputError(
            f"{ADDRESS_VARIABLE}: slurmrestd at {self._address} does not answer as expected: "
            f"{words}; unset {ADDRESS_VARIABLE} to ask with Slurm's commands"
        )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


def _headers() -> Mapping[str, str]:
    token = os.environ.get(_TOKEN_VARIABLE)
    if token is None:
        return {}
    return {"X-SLURM-USER-NAME": getpass.getuser(), "X-SLURM-USER-TOKEN": token}
