"""The runtime environment of a Ray job: the user's, and what ends it in good order.

A folder as working directory becomes a package, named after what is in it, which is uploaded
when the job is submitted: so the whole submission is known beforehand.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trimtab.core.errors import InputError, MissingExtraError, shown
from trimtab.core.scheduling import RayOptions

STOP_WAIT_S: Final = 240
"""Ray kills a job's driver this long after it asked for the end (its default: 3 s). The
controller's own patience with ranks that write a checkpoint is shorter."""

_OWN_VARIABLES: Final = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor without GPUs sees what its node sees
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
}
_MOST_PACKAGE_BYTES: Final = 500 * 2**20
"""What a head node accepts (Ray's GCS_STORAGE_MAX_SIZE)."""
_NEVER_PACKED: Final = (".git", ".venv", "venv", "__pycache__")
"""What `ray job submit` leaves out too."""
_LISTS: Final = {"pip": "packages", "uv": "packages", "py_modules": "URIs"}
"""Fields where Ray also takes a path, which would be looked for on the cluster."""


def runtime_env(options: RayOptions) -> Mapping[str, Any]:
    """The runtime environment as it is submitted; reads the working directory, writes nothing.

    Raises:
        InputError: It is not JSON of the right form, or contradicts `working_dir`.
        MissingExtraError: A folder needs Ray's own packaging.
    """
    environment = _parsed(options.runtime_env_json)
    variables = _variables(environment)
    _check_lists(environment)
    working_dir = _working_dir(options, environment)
    if working_dir is not None:
        environment["working_dir"] = _packaged(working_dir, environment)
    environment["env_vars"] = {**_OWN_VARIABLES, **variables}
    return environment


def local_folder(options: RayOptions) -> str | None:
    """The folder that is to be uploaded, or None where there is none.

    Raises:
        InputError: As `runtime_env`.
    """
    working_dir = _working_dir(options, _parsed(options.runtime_env_json))
    return None if working_dir is None or "://" in working_dir else working_dir


def package(folder: str, options: RayOptions) -> tuple[str, bytes]:
    """The package of a working directory: its address, and the zip file.

    Raises:
        InputError: It is too large.
        MissingExtraError: Ray is not installed here.
    """
    environment = _parsed(options.runtime_env_json)
    uri = _uri(folder, environment)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "package.zip"
        _packaging().create_package(
            folder,
            target,
            include_gitignore=True,
            excludes=_excludes(environment),
            logger=_quiet_logger(),
        )
        num_bytes = target.stat().st_size
        if num_bytes > _MOST_PACKAGE_BYTES:
            raise InputError(
                f"ray.working_dir: expected at most {_MOST_PACKAGE_BYTES // 2**20} MiB packed, "
                f"got {num_bytes // 2**20} in {folder}; leave files out by a .gitignore, or by "
                '"excludes" in ray.runtime_env_json'
            )
        return uri, target.read_bytes()


def _parsed(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"ray.runtime_env_json: expected JSON, got {shown(text)}: {error}"
        ) from error
    if not isinstance(document, dict):
        raise InputError(f"ray.runtime_env_json: expected an object {{...}}, got {shown(text)}")
    return document


def _variables(environment: Mapping[str, Any]) -> Mapping[str, str]:
    variables = environment.get("env_vars", {})
    if not isinstance(variables, dict) or not all(
        isinstance(value, str) for value in variables.values()
    ):
        raise InputError(
            'ray.runtime_env_json: env_vars: expected an object of texts, as {"NAME": "value"}'
        )
    return variables


def _check_lists(environment: Mapping[str, Any]) -> None:
    for field, what in _LISTS.items():
        if isinstance(environment.get(field), str):
            raise InputError(
                f"ray.runtime_env_json: {field}: expected a list of {what}, got "
                f"{shown(environment[field])}: Ray would look for such a file on the cluster"
            )
    for module in environment.get("py_modules", ()):
        if "://" not in str(module):
            raise InputError(
                f"ray.runtime_env_json: py_modules: expected URIs, got {shown(module)}; put "
                "local modules into ray.working_dir"
            )


def _working_dir(options: RayOptions, environment: Mapping[str, Any]) -> str | None:
    in_json = environment.get("working_dir")
    if in_json is not None and options.working_dir is not None:
        raise InputError(
            f"ray.working_dir: {shown(options.working_dir)} is given, and ray.runtime_env_json "
            f"names {shown(in_json)} too; leave one out"
        )
    if in_json is not None and not isinstance(in_json, str):
        raise InputError(
            f"ray.runtime_env_json: working_dir: expected a text, got {shown(in_json)}"
        )
    return options.working_dir or in_json


def _packaged(working_dir: str, environment: Mapping[str, Any]) -> str:
    if "://" in working_dir:
        return working_dir
    if not Path(working_dir).is_dir():
        raise InputError(f"ray.working_dir: expected a folder, got {shown(working_dir)}")
    return _uri(working_dir, environment)


def _uri(folder: str, environment: Mapping[str, Any]) -> str:
    return str(
        _packaging().get_uri_for_directory(
            folder, include_gitignore=True, excludes=_excludes(environment)
        )
    )


def _excludes(environment: Mapping[str, Any]) -> list[str]:
    excludes = environment.get("excludes", [])
    if not isinstance(excludes, list) or not all(isinstance(each, str) for each in excludes):
        raise InputError(
            f"ray.runtime_env_json: excludes: expected a list of texts, got {shown(excludes)}"
        )
    return [*_NEVER_PACKED, *excludes]


def _quiet_logger() -> logging.Logger:
    logger = logging.getLogger(__name__)
    logger.setLevel(logging.ERROR)
    return logger


def _packaging() -> Any:
    """Ray's own packaging: it honours .gitignore, and names a package as clusters know it."""
    try:
        from ray._private.runtime_env import packaging
    except ImportError as error:
        raise MissingExtraError(
            "ray.working_dir: a folder is packed by Ray, which is not installed; "
            "pip install 'trimtab[ray]', or give the address of a zip file"
        ) from error
    return packaging
