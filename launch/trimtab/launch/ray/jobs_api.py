"""A Ray cluster as its Jobs API shows it: plain HTTP, so that submitting needs no Ray.

Source: Ray's "Ray Jobs REST API" for `/api/jobs/`; its state API for `/api/v0/nodes`.
"""

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trimtab.core.errors import InputError, shown

ADDRESS_VARIABLES: Final = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where Ray's own commands look for the address, in their order."""
LOCAL_ADDRESS: Final = "http://127.0.0.1:8265"
"""What `auto` stands for: the port a head node serves its Jobs API on unless told otherwise."""

_ANSWER_S: Final = 15.0
_UPLOAD_S: Final = 300.0
_NOT_FOUND: Final = 404
_UNAUTHORIZED: Final = (401, 403)
_MOST_NODES: Final = 10_000
"""What the state API gives at most in one answer (RAY_MAX_LIMIT_FROM_API_SERVER)."""
_SHOWN_CHARS: Final = 300
_ERROR: Final = re.compile(r"[\w.]*(Error|Exception): ")
"""The line of a traceback that says what is wrong; its message may have further ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveNode:
    """A node of the cluster that is alive."""

    node_id: str
    address: str
    resources: Mapping[str, float]
    """All it has, in use or not: `CPU`, `GPU`, custom ones."""


class JobsApi:
    """The Jobs API of one cluster."""

    def __init__(self, address: str, *, environment: Mapping[str, str] | None = None) -> None:
        """Connect to nothing yet.

        Args:
            address: As `resolved_address` gives it.
            environment: Where Ray's variables for its tokens are; None: of this process.
        """
        self._address = address
        self._environment = os.environ if environment is None else environment

    def submit(self, submission: str) -> str:
        """Hand over a job as JSON, unchanged; returns its submission id.

        Raises:
            InputError: The cluster cannot be reached, or refuses the job.
        """
        answer = self._ask("POST", "/api/jobs/", body=submission.encode())
        return str(json.loads(answer)["submission_id"])

    def job(self, submission_id: str) -> Mapping[str, Any] | None:
        """What Ray knows of a job, or None where it does not know it.

        Raises:
            InputError: The cluster cannot be reached.
        """
        try:
            answer = self._ask("GET", f"/api/jobs/{_quoted(submission_id)}")
        except _NotFoundError:
            return None
        return _object(answer)

    def jobs(self) -> Mapping[str, Mapping[str, Any]]:
        """All submitted jobs by submission id.

        Raises:
            InputError: The cluster cannot be reached.
        """
        found = json.loads(self._ask("GET", "/api/jobs/"))
        return {job["submission_id"]: job for job in found if job.get("submission_id")}

    def stop(self, submission_id: str) -> None:
        """Ask for a job's end; one that has ended, or is unknown, is left as it is.

        Raises:
            InputError: The cluster cannot be reached, or refuses.
        """
        try:
            self._ask("POST", f"/api/jobs/{_quoted(submission_id)}/stop", body=b"")
        except _NotFoundError:
            return

    def live_nodes(self) -> tuple[LiveNode, ...]:
        """The nodes that are alive.

        Raises:
            InputError: The cluster cannot be reached.
        """
        answer = _object(self._ask("GET", f"/api/v0/nodes?limit={_MOST_NODES}"))
        try:
            return tuple(
                LiveNode(
                    node_id=node["node_id"],
                    address=node["node_ip"],
                    resources=node["resources_total"],
                )
                for node in answer["data"]["result"]["result"]
                if node["state"] == "ALIVE"
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"ray.address: what answers at {self._address} does not list its nodes as Ray "
                f"2.50 or newer does: {_short(json.dumps(answer))}"
            ) from error

    def has_package(self, uri: str) -> bool:
        """Whether a package has been uploaded already.

        Raises:
            InputError: The cluster cannot be reached.
        """
        try:
            self._ask("GET", _package_path(uri))
        except _NotFoundError:
            return False
        return True

    def upload_package(self, uri: str, content: bytes) -> None:
        """Upload a zip file under the address that jobs will name it by.

        Raises:
            InputError: The cluster cannot be reached, or refuses it.
        """
        self._ask("PUT", _package_path(uri), body=content, timeout_s=_UPLOAD_S)

    def _ask(
        self, method: str, path: str, *, body: bytes | None = None, timeout_s: float = _ANSWER_S
    ) -> str:
        headers = {"Content-Type": "application/json", **_authorization(self._environment)}
        request = urllib.request.Request(  # noqa: S310  http or https: `resolved_address`
            self._address + path, data=body, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310  so
                return str(answer.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(
                    error.code, error.read().decode(errors="replace")
                ) from error
        except (OSError, ValueError) as error:  # refused, timed out, no such host, no HTTP
            reason = getattr(error, "reason", None) or error
            raise InputError(
                f"ray.address: no Ray Jobs API answers at {self._address} ({reason}); start "
                "the cluster, or give the address of its dashboard, as http://HEAD:8265"
            ) from error

    def _refused(self, code: int, words: str) -> InputError:
        if code == _NOT_FOUND:
            return _NotFoundError(f"ray.address: {self._address}: {_short(words)}")
        if code in _UNAUTHORIZED:
            return InputError(
                f"ray.address: {self._address} wants a token ({_short(words)}); set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        return InputError(f"Ray at {self._address} refused (HTTP {code}): {_short(words)}")


class _NotFoundError(InputError):
    """The cluster does not know what was asked for."""


def resolved_address(given: str | None) -> str:
    """The address of the Jobs API that is meant: given, or from the environment.

    Raises:
        InputError: There is none, or it is not one of the Jobs API.
    """
    named = (os.environ.get(name) for name in ADDRESS_VARIABLES)
    address = given or next(filter(None, named), None)
    if address is None:
        raise InputError(
            "ray.address: none given; expected the cluster's dashboard, as http://HEAD:8265, "
            "from --address or in RAY_ADDRESS (`auto`: the one on this machine)"
        )
    if address == "auto":
        return LOCAL_ADDRESS
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "ray":
        raise InputError(
            f"ray.address: {address} is one of Ray Client; jobs are submitted to the cluster's "
            f"dashboard: http://{parts.hostname or 'HEAD'}:8265"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or _has_bad_port(parts):
        raise InputError(
            f"ray.address: expected the form http://HEAD:8265, got {shown(address)}"
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "ray.address: expected no user name or password in it, for it is written down; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        )
    return address.rstrip("/")


def _has_bad_port(parts: urllib.parse.SplitResult) -> bool:
    try:
        return parts.port == 0
    except ValueError:
        return True


def _authorization(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The header of Ray's token authentication, where it is on.

    Source: Ray's "Token authentication" (2.52 and newer), variables and default path.
    """
    if environment.get("RAY_AUTH_MODE", "").casefold() != "token":
        return {}
    token = environment.get("RAY_AUTH_TOKEN")
    if token is None:
        named = environment.get("RAY_AUTH_TOKEN_PATH")
        path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
        try:
            token = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(
                f"RAY_AUTH_MODE is token, but there is none to read in {path}: {error}; set "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
    token = token.strip()
    if re.search(r"[^\x21-\x7e]", token):
        raise InputError("RAY_AUTH_TOKEN: expected printable characters without spaces")
    return {"Authorization": f"Bearer {token}"}


def _object(answer: str) -> Mapping[str, Any]:
    document = json.loads(answer)
    return document if isinstance(document, dict) else {}


def _package_path(uri: str) -> str:
    protocol, _, name = uri.partition("://")
    return f"/api/packages/{_quoted(protocol)}/{_quoted(name)}"


def _quoted(part: str) -> str:
    return urllib.parse.quote(part, safe="")


def _short(words: str) -> str:
    """What was answered, in one line: of a traceback, the error at its end."""
    lines = words.rstrip().splitlines()
    begin = max((i for i, line in enumerate(lines) if _ERROR.match(line)), default=-1)
    return " ".join(" ".join(lines[begin:]).split())[:_SHOWN_CHARS] or "no reason given"
