"""Files as text, and YAML whose values stay the text they are written as."""

from pathlib import Path
from typing import Any, Final

import yaml

from trimtab.core.errors import InputError

_KEPT_TAGS: Final = (":null", ":merge")


class _TextLoader(yaml.SafeLoader):
    """Reads every plain value as text, but for nulls and merges."""

    yaml_implicit_resolvers = {  # noqa: RUF012  yaml's own name and form
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(_KEPT_TAGS)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: expected a file, got a folder; name a file in it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at "
            f"offset {error.start}"
        ) from error


def values_as_written(text: str) -> Any:
    """A YAML document in which `1:00:00`, `60` and `yes` are texts.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    return _TextLoader(text).get_single_data()
