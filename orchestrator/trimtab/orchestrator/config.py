"""Cluster, model and job files: YAML in datasheet units in, core values out.

Slurm's options are kept as they are written: YAML would read `1:00:00` as 3600, which Slurm
would take for minutes.

OmegaConf reads the YAML and applies `a.b=c` overrides, and stops here: it lets `.nan` pass and
returns dicts where tuples of dataclasses are asked for, so types, keys and values are checked
by `core.serde` and `core.checks`. Interpolation (`${...}`) is refused: what a job file says is
what is recorded, and no variable of the environment, a secret perhaps, can slip into it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trimtab.core import serde
from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import InputError, placed, shown, unknown_name_message
from trimtab.core.job import (
    BYTE_TOKENIZER,
    STDLIB_SOURCE,
    CheckpointSpec,
    DataSource,
    DataSpec,
    JobSpec,
    StepPlanningSpec,
    TelemetrySpec,
    TrainingSpec,
)
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import StepProfile
from trimtab.core.scheduling import RayOptions, RestartSpec, SlurmOptions, StageOptions
from trimtab.core.staged import StagePathSpec
from trimtab.orchestrator.cluster_file import cluster_document, cluster_from_document
from trimtab.orchestrator.file_text import read_text, values_as_written
from trimtab.orchestrator.hf_config import MODEL_TYPES, is_hf_config, model_from_hf_config
from trimtab.planners.calibration import profile_from_document

_REFERENCES = ("model", "cluster", "profile")
_PATH_KEY = re.compile(r"data\.sources\[\d+\]\.path|data\.tokenizer|checkpoint\.start_from")
_MISSING_MARK = "???"
_AS_WRITTEN = "slurm"
"""The section whose values are texts in the forms of another program."""
_READ_FROM = "_read_from"
"""Key of a `config.json` within a job: its path, for messages."""


_SECTIONS: dict[str, type] = {
    "data": DataSpec,
    "training": TrainingSpec,
    "step_planning": StepPlanningSpec,
    "stage_paths": StagePathSpec,
    "checkpoint": CheckpointSpec,
    "telemetry": TelemetrySpec,
    "restart": RestartSpec,
    "slurm": SlurmOptions,
    "ray": RayOptions,
    "stage": StageOptions,
}
"""The sections of a job file that read as core values as they stand."""

_JOB_KEYS = ("name", *_REFERENCES, "num_ranks", "num_nodes", "layout", *_SECTIONS)
_NEEDED = ("name", "model", "cluster", "data", "training")


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job file; `model`, `cluster` and `profile` in it may be paths or inline.

    Args:
        path: The YAML file. Paths in it are relative to its folder.
        overrides: `a.b=c` settings that win over the file, values as in YAML. Paths in them
            are relative to the working directory.

    Raises:
        InputError: A file is missing or malformed, or a key or value is wrong.
    """
    path = Path(path)
    config = _read_yaml(path)
    for key in _replaced(overrides):
        config[key] = None
    config = _without_references(config, path=path)
    for override in overrides:
        _apply_override(config, override)
    document = _plain(config, source=str(path))
    label = f"{path} (+ overrides)" if overrides else str(path)
    with placed(label):
        return _job(document, folder=path.resolve().parent)


def load_cluster(path: str | Path) -> ClusterSpec:
    """Read a cluster file.

    Raises:
        InputError: The file is missing or malformed, or a key or value is wrong.
    """
    path = Path(path)
    document = read_mapping(path)
    with placed(path):
        return cluster_from_document(document)


def cluster_text(cluster: ClusterSpec) -> str:
    """A cluster as its file reads."""
    text: str = yaml.safe_dump(cluster_document(cluster), sort_keys=False, width=96)
    return text


def load_model(path: str | Path) -> ModelSpec:
    """Read a model: our YAML, a Hugging Face `config.json`, or the folder that holds one.

    Raises:
        InputError: The file is missing or malformed, or the model is not supported.
    """
    document, path = _read_model(Path(path))
    with placed(path):
        return _model(document, name=path.resolve().parent.name, path="model")


def load_profile(path: str | Path) -> StepProfile:
    """Read a profile of step coefficients (JSON or YAML, in ms, GB/s and MB per token).

    Raises:
        InputError: The file is missing or malformed, or a key or value is wrong.
    """
    path = Path(path)
    document = read_mapping(path)
    with placed(path):
        return profile_from_document(document)


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML or JSON file.

    Raises:
        InputError: The file is missing or malformed, or holds something else.
    """
    return _plain(_read_yaml(path), source=str(path))


def _job(document: dict[str, Any], *, folder: Path) -> JobSpec:
    given = {key: value for key, value in document.items() if value is not None}
    for key in given:
        if key not in _JOB_KEYS:
            raise InputError(f"{key}: {unknown_name_message('key', key, _JOB_KEYS)}")
    for key in _NEEDED:
        if key not in given:
            raise InputError(f"{key}: missing from the job")
    _resolve_paths(given, folder=folder)
    cluster = cluster_from_document(_mapping(given["cluster"], "cluster"), path="cluster")
    name = given["name"]
    if not isinstance(name, str):
        raise InputError(f"name: expected text, got {shown(name)}")
    num_ranks = given.get("num_ranks", cluster.num_gpus)
    _check_sources(given["data"])
    sections: dict[str, Any] = {
        key: serde.from_fields(section, _mapping(given[key], key), path=key)
        for key, section in _SECTIONS.items()
        if key in given
    }
    return JobSpec(
        name=name,
        model=_model(_mapping(given["model"], "model"), name=name, path="model"),
        cluster=cluster,
        num_ranks=num_ranks,
        num_nodes=given.get("num_nodes"),
        layout=_layout(given.get("layout"), num_ranks=num_ranks),
        profile=_profile(given.get("profile")),
        **sections,
    )


def _check_sources(data: Any) -> None:
    """Read every source by itself, for a message that says which one is wrong."""
    sources = data.get("sources") if isinstance(data, dict) else None
    for index, source in enumerate(sources if isinstance(sources, list) else ()):
        path = f"data.sources[{index}]"
        try:
            serde.from_fields(DataSource, source, path=path)
        except InputError as error:
            raise InputError(str(error).replace("data.sources.", f"{path}.", 1)) from error


def _model(document: dict[str, Any], *, name: str, path: str) -> ModelSpec:
    if is_hf_config(document):
        try:
            return model_from_hf_config(document, name=document.get("name", name))
        except InputError as error:
            file = document.get(_READ_FROM)
            raise InputError(f"{path}: {file}: {error}" if file else str(error)) from error
    return serde.from_fields(ModelSpec, document, path=path)


def _profile(section: Any) -> StepProfile | None:
    if section is None:
        return None
    with placed("profile"):
        return profile_from_document(_mapping(section, "profile"))


def _layout(section: Any, *, num_ranks: Any) -> Layout | None:
    """The layout of the file; a `dp` left out is what the other degrees leave of the ranks."""
    if section is None:
        return None
    layout = serde.from_fields(Layout, _mapping(section, "layout"), path="layout")
    if "dp" in section or not isinstance(num_ranks, int) or num_ranks % layout.num_ranks:
        return layout
    dp = num_ranks // layout.num_ranks
    return serde.from_fields(Layout, {**section, "dp": dp}, path="layout")


def _resolve_paths(document: dict[str, Any], *, folder: Path) -> None:
    """Make the paths of the data, checkpoint and tokenizer absolute, in place."""
    data = document.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources if isinstance(sources, list) else ():
        _resolve_key(source, "path", folder=folder)
    _resolve_key(data, "tokenizer", folder=folder)
    _resolve_key(document.get("checkpoint"), "start_from", folder=folder)


def _resolve_key(section: Any, key: str, *, folder: Path) -> None:
    if isinstance(section, dict) and isinstance(section.get(key), str) and section[key]:
        section[key] = _absolute(section[key], folder=folder)


def _absolute(text: str, *, folder: Path) -> str:
    if text == BYTE_TOKENIZER or text.startswith(STDLIB_SOURCE):
        return text
    return str((folder / Path(text).expanduser()).resolve())


def _replaced(overrides: Sequence[str]) -> Iterator[str]:
    """References that an override replaces whole, so that the file's own is never read."""
    seen: set[str] = set()
    for override in overrides:
        key = override.partition("=")[0].strip()
        top = _top_key(key)
        if key in _REFERENCES and key not in seen:
            yield key
        seen.add(top)


def _without_references(config: Any, *, path: Path) -> Any:
    """The job file with the files that `model`, `cluster` and `profile` name read in."""
    for key in _REFERENCES:
        value = config.get(key) if not OmegaConf.is_missing(config, key) else None
        if isinstance(value, str):
            config[key] = _read_reference(key, value, folder=path.parent, source=str(path))
    return config


def _read_reference(key: str, text: str, *, folder: Path, source: str) -> Any:
    target = folder / Path(text).expanduser()
    with placed(f"{source}: {key}"):
        if key != "model":
            return read_mapping(target)
        document, found = _read_model(target)
        if is_hf_config(document):
            name = found.resolve().parent.name
            return {"name": name, **document, _READ_FROM: str(found)}
        return document


def _read_model(path: Path) -> tuple[dict[str, Any], Path]:
    found = path / "config.json" if path.is_dir() else path
    document = read_mapping(found)
    if found.name == "config.json" and not (is_hf_config(document) or "num_layers" in document):
        raise InputError(
            f"{found}: model_type: missing; expected a Hugging Face config.json of one of "
            f"{', '.join(MODEL_TYPES)}"
        )
    return document, found


def _read_yaml(path: Path) -> Any:
    """A YAML or JSON file as an OmegaConf mapping, nothing resolved."""
    text = read_text(path)
    if path.suffix == ".json":
        return _parse_json(text, source=str(path))
    config = _parse_yaml(text, source=str(path))
    if not config:
        raise InputError(f"{path}: expected a mapping of keys to values, got nothing")
    if not OmegaConf.is_dict(config):
        raise InputError(f"{path}: expected a mapping of keys to values, got a list")
    return config


def _parse_yaml(text: str, *, source: str) -> Any:
    try:
        config: Any = OmegaConf.create(text)
        if OmegaConf.is_dict(config) and config.get(_AS_WRITTEN) is not None:
            config[_AS_WRITTEN] = values_as_written(text)[_AS_WRITTEN]
        return config
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise InputError(f"{where}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: not valid YAML: {reason}") from error
    except AssertionError as error:  # OmegaConf's, of a document that is one number
        raise InputError(
            f"{source}: expected a mapping of keys to values, got {shown(text.strip())}"
        ) from error


def _parse_json(text: str, *, source: str) -> Any:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{source}, line {error.lineno}"
        raise InputError(f"{where}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits, say
        raise InputError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{source}: expected a JSON object, got {type(document).__name__}")
    return OmegaConf.create(document)


def _apply_override(config: Any, override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"override: expected the form key.path=value, got {override!r}")
    key = key.strip()
    value = _override_value(text, override=override)
    if key in _REFERENCES and isinstance(value, str):
        value = _read_reference(key, value, folder=Path.cwd(), source=override)
    elif _PATH_KEY.fullmatch(key) and isinstance(value, str):
        value = _absolute(value, folder=Path.cwd())
    _check_top_key(key)
    try:
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    except IndexError as error:
        raise InputError(f"override {override!r}: the list has no such entry") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"override {override!r}: {reason}") from error


def _check_top_key(key: str) -> None:
    top = _top_key(key)
    if top not in _JOB_KEYS:
        raise InputError(f"override {key}: {unknown_name_message('key', top, _JOB_KEYS)}")


def _top_key(key: str) -> str:
    return re.split(r"[.\[]", key, maxsplit=1)[0]


def _override_value(text: str, *, override: str) -> Any:
    """The value of an override, typed as in YAML: `4`, `1e-3`, `true`, `null`, `[1, 2]`."""
    top = _top_key(override.partition("=")[0].strip())
    key = _AS_WRITTEN if top == _AS_WRITTEN else "value"
    config = _parse_yaml(f"{key}: {text}\n", source=f"override {override!r}")
    return _plain(config, source=f"override {override!r}")[key]


def _plain(config: Any, *, source: str) -> dict[str, Any]:
    """The mapping as plain Python values, refusing interpolation."""
    document = OmegaConf.to_container(config, resolve=False)
    assert isinstance(document, dict)
    for path, text in _texts(document, path=""):
        if "${" in text or text == _MISSING_MARK:
            raise InputError(
                f"{source}: {path}: interpolation is not supported, got {text!r}; "
                "write the value itself"
            )
    return {str(key): value for key, value in document.items()}


def _texts(value: Any, *, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, path=f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, path=f"{path}[{index}]")


def _mapping(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        expected = "a path or a mapping" if path in _REFERENCES else "a mapping"
        raise InputError(f"{path}: expected {expected}, got {shown(value)}")
    return value
