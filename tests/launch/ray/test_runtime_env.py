import io
import json
import zipfile
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.scheduling import RayOptions
from trimtab.launch.ray.runtime_env import local_folder, package, runtime_env


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with files that are not to be sent."""
    for name in ("train.py", "data/big.bin", "notes.txt", ".git/config", ".venv/bin/python"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / ".gitignore").write_text("data\n")
    return tmp_path


def options(environment: object = None, *, working_dir: Path | None = None) -> RayOptions:
    return RayOptions(
        runtime_env_json=None if environment is None else json.dumps(environment),
        working_dir=None if working_dir is None else str(working_dir),
    )


def test_a_folder_is_packed_without_what_is_ignored(folder: Path) -> None:
    given = options({"excludes": ["notes.txt"]}, working_dir=folder)
    uri, content = package(str(folder), given)
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        files = {name for name in packed.namelist() if not name.endswith("/")}
    assert files == {"train.py", ".gitignore"}
    assert runtime_env(given)["working_dir"] == uri


def test_a_package_is_named_after_what_is_in_it(folder: Path) -> None:
    given = options(working_dir=folder)
    before = runtime_env(given)
    assert runtime_env(given) == before
    (folder / "train.py").write_text("changed")
    assert runtime_env(given) != before


def test_only_a_folder_is_uploaded(folder: Path) -> None:
    assert local_folder(options(working_dir=folder)) == str(folder)
    assert local_folder(options({"working_dir": str(folder)})) == str(folder)
    assert local_folder(options({"working_dir": "s3://bucket/a.zip"})) is None
    assert local_folder(options()) is None


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (RayOptions(runtime_env_json="{"), "expected JSON, got"),
        (options(["a"]), r"expected an object \{\.\.\.\}"),
        (options({"env_vars": {"A": 1}}), "env_vars: expected an object of texts"),
        (options({"pip": "requirements.txt"}), "pip: expected a list of packages"),
        (options({"py_modules": ["./mine"]}), "py_modules: expected URIs"),
        (options({"working_dir": 1}), "working_dir: expected a text"),
    ],
)
def test_a_wrong_environment_is_refused(given: RayOptions, complaint: str) -> None:
    with pytest.raises(InputError, match=rf"^ray\.runtime_env_json: {complaint}"):
        runtime_env(given)


def test_two_working_directories_are_refused(folder: Path) -> None:
    given = options({"working_dir": "s3://bucket/a.zip"}, working_dir=folder)
    with pytest.raises(InputError, match=r"^ray\.working_dir: .* is given, and"):
        runtime_env(given)


def test_a_working_directory_that_is_none_is_refused(folder: Path) -> None:
    given = options(working_dir=folder / "train.py")
    with pytest.raises(InputError, match=r"^ray\.working_dir: expected a folder"):
        runtime_env(given)
