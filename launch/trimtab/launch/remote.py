"""A folder at an address: whatever fsspec reaches, as seen by a rank that keeps files there.

The only module that imports fsspec, which names each protocol's own package (s3fs, gcsfs) where
that is missing. Credentials are found the way that package finds them: the environment, files.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.core.errors import InputError, JobFailedError, MissingExtraError

_FIELD = "checkpoint.address"


class RemoteFolder:
    """A folder at an address; every method raises `JobFailedError` where that fails.

    Args:
        address: As a person wrote it.
        files: fsspec's file system.
        path: Of the folder within it.
    """

    def __init__(self, address: str, *, files: Any, path: str) -> None:
        self.address = address.rstrip("/")
        self._files = files
        self._path = path.rstrip("/")

    @classmethod
    def at(cls, address: str) -> "RemoteFolder":
        """The folder at `address`; nobody is asked yet whether it is there.

        Raises:
            MissingExtraError: A package for it is missing.
            InputError: fsspec knows no such protocol, or the address has not its form.
        """
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError(
                f"{_FIELD}: an address needs the fsspec package; pip install 'trimtab[train]'"
            ) from error
        try:
            files, path = fsspec.url_to_fs(address)
        except ImportError as error:
            raise MissingExtraError(f"{_FIELD}: {address}: {_line(error)}") from error
        except Exception as error:  # each protocol's package has errors of its own
            raise InputError(f"{_FIELD}: {address}: {_line(error)}") from error
        return cls(address, files=files, path=path)

    def __truediv__(self, name: str) -> "RemoteFolder":
        """A folder in it."""
        return RemoteFolder(
            f"{self.address}/{name}", files=self._files, path=f"{self._path}/{name}"
        )

    def make(self) -> None:
        """Make the folder and the one it lies in, where they are missing; never a bucket.

        What those two lie in must be there, for a typing error to be noticed.
        """
        with self._told("made"):
            for path in (self._path.rpartition("/")[0], self._path):
                if "/" in path.strip("/"):
                    with contextlib.suppress(FileExistsError):
                        self._files.mkdir(path, create_parents=False)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below, by its path from here; none where there is no folder."""
        with self._told("listed"):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._path, detail=True)
            except FileNotFoundError:
                return {}
        return {
            path.removeprefix(f"{self._path}/"): int(entry["size"])
            for path, entry in found.items()
        }

    def read(self, name: str) -> bytes:
        with self._told("read", name):
            return bytes(self._files.cat_file(f"{self._path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        with self._told("written", name):
            self._files.pipe_file(f"{self._path}/{name}", data)

    def upload(self, file: Path, name: str) -> None:
        """Copy a file of this machine to `name`."""
        with self._told("written", name):
            self._files.put_file(str(file), f"{self._path}/{name}")

    def download(self, name: str, file: Path) -> None:
        """Copy `name` to a file of this machine."""
        with self._told("read", name):
            self._files.get_file(f"{self._path}/{name}", str(file))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it, if it is there."""
        with self._told("removed", name), contextlib.suppress(FileNotFoundError):
            self._files.invalidate_cache()
            self._files.rm(f"{self._path}/{name}", recursive=True)

    @contextlib.contextmanager
    def _told(self, done: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each protocol's package has errors of its own
            place = f"{self.address}/{name}" if name else self.address
            raise JobFailedError(f"{place} cannot be {done}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """What went wrong, in one line: not every message says it without the error's name."""
    return " ".join(f"{type(error).__name__}: {error}".split())
