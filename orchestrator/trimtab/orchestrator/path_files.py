"""Files of stage paths: instances, arrangements and plans, as JSON."""

import json
import math
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError, placed, shown
from trimtab.core.stage_paths import PathInstance, PathSchedule
from trimtab.planners.paths.path_instance import (
    instance_from_document,
    partitions_from_document,
    schedule_parts,
)
from trimtab.planners.paths.path_starts import Partitions
from trimtab.planners.paths.path_times import schedule_problems


def load_instance(path: Path) -> PathInstance:
    """The instance of a file, or of a plan that holds one.

    Raises:
        InputError: The file cannot be read, or does not describe one.
    """
    with placed(path):
        document = _document(path)
        if isinstance(document, dict) and "instance" in document:
            document = document["instance"]
        return instance_from_document(document)


def load_partitions(path: Path, instance: PathInstance) -> Partitions:
    """The nodes of every stage.

    Raises:
        InputError: The file cannot be read, or does not fit the instance.
    """
    with placed(path):
        return partitions_from_document(_document(path), instance)


def load_schedule(path: Path, instance: PathInstance) -> PathSchedule:
    """The schedule of a plan.

    Raises:
        InputError: The file cannot be read, or its schedule breaks a rule of the instance.
    """
    with placed(path):
        partitions, paths, release_s = schedule_parts(_document(path), instance)
        schedule = PathSchedule(partitions=partitions, paths=paths, release_s=release_s)
        problems = schedule_problems(instance, schedule)
        if problems:
            raise InputError(f"its schedule does not fit the instance: {problems[0]}")
    return schedule


def in_stage_limit(text: str, instance: PathInstance) -> tuple[float, Partitions | None]:
    """A limit in seconds, or that of the arrangement in a file, and the arrangement.

    Raises:
        InputError: It is neither.
    """
    try:
        seconds = float(text)
    except ValueError:
        partitions = load_partitions(Path(text), instance)
        return instance.in_stage_delay_s(partitions), partitions
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(
            f"--most-in-stage-delay: expected seconds >= 0 or a file, got {shown(text)}"
        )
    return seconds, None


def _document(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"expected a JSON file, but {reason}") from error
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON document, but {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{shown(repeated)}: the key is given twice; keep one of them")
    return document
