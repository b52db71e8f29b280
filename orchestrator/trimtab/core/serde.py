"""Core values as JSON and back, losing nothing.

A document is `{"schema": 1, "type": "StepPlan", ...fields}`. Inside it, a value has its fields
only, and a `type` where its place admits more than one type. Unknown fields, missing fields and
wrong types are refused with the path of the field.
"""

import dataclasses
import enum
import functools
import json
import math
import types
import typing
from typing import Any, TypeVar

from trimtab.core.errors import InputError, shown, unknown_name_message

SCHEMA_VERSION = 1

_SCALARS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}

T = TypeVar("T")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A frozen dataclass as one JSON document."""
    return json.dumps(to_document(value), indent=indent, allow_nan=False)


def from_json(expected: type[T], text: str) -> T:
    """Read what `to_json` wrote; `expected` is a dataclass or a union of dataclasses.

    Raises:
        InputError: The text is not JSON, of another schema version, or does not fit.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits, say
        raise InputError(f"expected a JSON document, but {error}") from error
    return from_document(expected, document)


def to_document(value: Any) -> dict[str, Any]:
    """A frozen dataclass as a JSON-ready dictionary with schema version and type."""
    return {"schema": SCHEMA_VERSION, "type": type(value).__name__, **_encode_fields(value)}


def from_document(expected: type[T], document: Any) -> T:
    """The inverse of `to_document`.

    Raises:
        InputError: The document is of another schema version or does not fit `expected`.
    """
    if not isinstance(document, dict):
        raise InputError(f"expected a JSON object, got {type(document).__name__}")
    version = document.get("schema")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"schema: this Trimtab reads version {SCHEMA_VERSION}, the document has {version!r}"
        )
    rest = {name: item for name, item in document.items() if name != "schema"}
    return typing.cast(T, _decode(_with_type_tag(expected), rest, path=""))


def from_fields(expected: type[T], value: Any, *, path: str = "") -> T:
    """Read a mapping that carries neither schema version nor type: a section of a YAML file.

    Args:
        expected: A dataclass.
        value: The mapping of its fields.
        path: Where the mapping stands in its document; messages begin with it.

    Raises:
        InputError: `value` does not fit.
    """
    return typing.cast(T, _decode_fields(expected, value, path=path))


def _encode_fields(value: Any) -> dict[str, Any]:
    value_type: Any = type(value)  # a bare type[Any] is not Hashable to mypy
    hints = _field_types(value_type)
    return {
        name: _encode(hint, getattr(value, name), path=name) for name, hint in hints.items()
    }


def _encode(hint: Any, value: Any, *, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = _encode_fields(value)
        return {"type": type(value).__name__, **fields} if _is_tagged(hint) else fields
    if isinstance(value, tuple):
        items = typing.get_args(hint)
        inner = items[0] if items else Any
        return [_encode(inner, item, path=f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path}: expected a finite number, got {value}")
    return value


def _decode(hint: Any, value: Any, *, path: str) -> Any:
    if _is_union(hint):
        return _decode_union(hint, value, path=path)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return _decode_literal(hint, value, path=path)
    if origin is tuple:
        return _decode_tuple(hint, value, path=path)
    if origin is _Tagged:
        (inner,) = typing.get_args(hint)
        return _decode_tagged((inner,), value, path=path)
    if dataclasses.is_dataclass(hint):
        return _decode_fields(typing.cast(type, hint), value, path=path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        names = [member.value for member in hint]
        if value not in names:
            raise InputError(f"{path}: {unknown_name_message('value', str(value), names)}")
        return hint(value)
    return _decode_scalar(hint, value, path=path)


def _decode_union(hint: Any, value: Any, *, path: str) -> Any:
    members = typing.get_args(hint)
    if value is None and types.NoneType in members:
        return None
    rest = tuple(member for member in members if member is not types.NoneType)
    if len(rest) == 1:
        return _decode(rest[0], value, path=path)
    return _decode_tagged(rest, value, path=path)


def _decode_tagged(members: tuple[Any, ...], value: Any, *, path: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{path or 'document'}: expected an object, got {shown(value)}")
    known = {member.__name__: member for member in members}
    tag = value.get("type")
    if tag not in known:
        message = unknown_name_message("type", str(tag), known)
        raise InputError(f"{path or 'document'}: {message}")
    rest = {name: item for name, item in value.items() if name != "type"}
    return _decode_fields(known[tag], rest, path=path)


def _decode_literal(hint: Any, value: Any, *, path: str) -> Any:
    allowed = typing.get_args(hint)
    if value not in allowed:
        raise InputError(f"{path}: {unknown_name_message('value', str(value), allowed)}")
    return value


def _decode_tuple(hint: Any, value: Any, *, path: str) -> Any:
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list, got {shown(value)}")
    items = typing.get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_decode(items[0], v, path=f"{path}[{i}]") for i, v in enumerate(value))
    if len(items) != len(value):
        raise InputError(f"{path}: expected {len(items)} entries, got {len(value)}")
    pairs = zip(items, value, strict=True)
    return tuple(_decode(item, v, path=f"{path}[{i}]") for i, (item, v) in enumerate(pairs))


def _decode_fields(expected: type, value: Any, *, path: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{path or expected.__name__}: expected an object, got {shown(value)}")
    hints = _field_types(expected)
    prefix = f"{path}." if path else ""
    for name in value:
        if name not in hints:
            raise InputError(f"{prefix}{name}: {unknown_name_message('key', name, hints)}")
    plain = _plain_types(expected)
    arguments = {
        name: item
        if type(item) in plain[name]
        else _decode(hints[name], item, path=f"{prefix}{name}")
        for name, item in value.items()
    }
    for name in _required(expected):
        if name not in arguments:
            raise InputError(f"{prefix}{name}: missing from {expected.__name__}")
    return expected(**arguments)


def _decode_scalar(hint: Any, value: Any, *, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return _float(value, path=path)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise InputError(f"{path}: expected {_SCALARS[hint]}, got {shown(value)}")
    return value


def _float(value: int, *, path: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise InputError(f"{path}: expected a finite number, got one beyond 1.8e308") from error


class _Tagged(typing.Generic[T]):
    """Marks a single dataclass whose document carries a `type` all the same: the top level."""


def _with_type_tag(expected: Any) -> Any:
    return _Tagged[expected] if dataclasses.is_dataclass(expected) else expected


@functools.cache
def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _is_tagged(hint: Any) -> bool:
    if not _is_union(hint):
        return False
    return sum(member is not types.NoneType for member in typing.get_args(hint)) > 1


@functools.cache
def _field_types(cls: Any) -> dict[str, Any]:
    """Field names of the dataclass `cls`, in order, with their resolved types."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _plain_types(cls: Any) -> dict[str, frozenset[type]]:
    """Types of JSON values that a field takes as they are; most values of most documents."""
    return {name: _plain(hint) for name, hint in _field_types(cls).items()}


def _plain(hint: Any) -> frozenset[type]:
    members = typing.get_args(hint) if _is_union(hint) else (hint,)
    rest = [member for member in members if member is not types.NoneType]
    if len(rest) == 1 and rest[0] in _SCALARS:
        return frozenset(members)
    return frozenset({types.NoneType} & set(members))


@functools.cache
def _required(cls: Any) -> tuple[str, ...]:
    """Names of the fields of the dataclass `cls` that have no default."""
    fields = dataclasses.fields(cls)
    return tuple(field.name for field in fields if field.default is dataclasses.MISSING)
