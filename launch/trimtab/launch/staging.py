"""What goes along with a job whose nodes share no files: code, request, script folder.

    code/trimtab/...    Trimtab as it runs here     code/request.json    without its submission
    work/...            the folder of the user's script

Packed the same every time, so that what is submitted is what a dry run prints. Packages of
others are the nodes' own; so are data, unless they lie at an address.
"""

import gzip
import importlib.metadata
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trimtab
from trimtab.core import serde
from trimtab.core.errors import InputError, shown
from trimtab.core.job import JobSpec, Request, ScriptSpec

STAGE_VARIABLE: Final = "TRIMTAB_STAGE"
"""Set for an agent of a staged job: the folder that was unpacked for it alone, or nothing."""

ARCHIVE_NAME: Final = "staged.tar.gz"
STAGED_FOLDER: Final = "staged"
"""In the run directory on the first node of a Slurm job: what came along, and it unpacked."""
REQUEST_NAME: Final = "request.json"

_NEVER_SENT: Final = frozenset(
    {".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache"}
    | {".pytest_cache", ".ruff_cache", ".trimtab", ".env"}
)
"""Names of folders and files; `.env` holds secrets, which no file of ours may."""
_MOST_FOLDER_BYTES: Final = 50 * 2**20
_READABLE: Final = 0o644
_EXECUTABLE: Final = 0o755


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFile:
    """A file that goes along."""

    name: str
    """Its path in the archive."""
    content: bytes
    is_executable: bool = False

    @property
    def mode(self) -> int:
        return _EXECUTABLE if self.is_executable else _READABLE


def check_stage(request: Request) -> None:
    """Refuse a staged job that would lose what it makes.

    Raises:
        InputError: Its checkpoints have no address, or its run directory's path does not fit.
    """
    job = request.job
    if isinstance(job, JobSpec) and job.checkpoint.address is None:
        raise InputError(
            "stage.enabled: the nodes share no files, so checkpoints need a place that all of "
            "them reach; set checkpoint.address, as s3://bucket/folder"
        )
    if os.pathsep in request.run_dir:
        raise InputError(
            f"stage.enabled: expected no {os.pathsep!r} in the run directory's path, got "
            f"{shown(request.run_dir)}; set TRIMTAB_RUNS_DIR"
        )


def with_python(argv: tuple[str, ...], job: JobSpec | ScriptSpec) -> tuple[str, ...]:
    """A command line of ours with the Python that the job's nodes have."""
    python = job.stage.python if job.stage.enabled else None
    return argv if python is None else (python, *argv[1:])


def word_address(job: JobSpec | ScriptSpec) -> str | None:
    """Where a staged run leaves its events and logs; None: nowhere but on its nodes."""
    if job.stage.address is not None:
        return job.stage.address
    return job.checkpoint.address if isinstance(job, JobSpec) else None


def code_files(request: Request) -> Iterator[StagedFile]:
    """Trimtab's modules as they are imported here, and the request that they are to run."""
    modules: dict[str, Path] = {}
    for portion in trimtab.__path__:
        for path in Path(portion).rglob("*.py"):
            modules.setdefault(f"trimtab/{path.relative_to(portion).as_posix()}", path)
    for name in sorted(modules):
        yield StagedFile(name=name, content=modules[name].read_bytes())
    version = importlib.metadata.version("trimtab")
    yield StagedFile(
        name=f"trimtab-{version}.dist-info/METADATA",
        content=f"Metadata-Version: 2.1\nName: trimtab\nVersion: {version}\n".encode(),
    )
    text = serde.to_json(replace(request, submission=""), indent=2)
    yield StagedFile(name=REQUEST_NAME, content=f"{text}\n".encode())


def sent_request() -> Request:
    """The request that came along with this process's own code."""
    text = Path(__file__).parents[2].joinpath(REQUEST_NAME).read_text(encoding="utf-8")
    return serde.from_json(Request, text)


def folder_files(folder: Path, *, without: Path) -> Iterator[StagedFile]:
    """What is in a script's folder, but version control, environments and caches.

    Args:
        folder: Of the script.
        without: A folder that may be in it and does not belong to it: that of the runs.

    Raises:
        InputError: It is too large, or cannot be read.
    """
    num_bytes = 0
    for path in _paths(folder, without=without):
        try:
            info = path.stat()
            num_bytes += info.st_size
            if num_bytes > _MOST_FOLDER_BYTES:
                raise InputError(
                    f"stage.enabled: the folder {folder} goes along with the script, but holds "
                    f"more than {_MOST_FOLDER_BYTES // 2**20} MiB; submit from a folder of its "
                    "code alone"
                )
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"stage.enabled: {path}: {error.strerror}") from error
        yield StagedFile(
            name=path.relative_to(folder).as_posix(),
            content=content,
            is_executable=bool(info.st_mode & stat.S_IXUSR),
        )


def below(folder: str, files: Iterable[StagedFile]) -> Iterator[StagedFile]:
    """The files in a folder of the archive."""
    return (replace(file, name=f"{folder}/{file.name}") for file in files)


def tar_of(files: Iterable[StagedFile]) -> bytes:
    """A tar file, packed by gzip."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mode = len(file.content), file.mode
            tar.addfile(entry, io.BytesIO(file.content))
    return gzip.compress(packed.getvalue(), mtime=0)


def _paths(folder: Path, *, without: Path) -> Iterator[Path]:
    """Regular files below a folder, in a fixed order."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if name not in _NEVER_SENT and here / name != without
        )
        wanted = sorted(name for name in names if name not in _NEVER_SENT)
        yield from (here / name for name in wanted if (here / name).is_file())
