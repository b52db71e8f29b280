"""What is shipped: pins, wheel, the base install without torch, and the layers."""

import ast
import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
COMMANDS: tuple[str, ...] = (
    "init",
    "doctor",
    "calibrate",
    "demo",
    "plan",
    "plan-step",
    "submit",
    "cancel",
)
COMMANDS += ("status", "logs", "list", "dashboard", "report", "compare")
PORTIONS = ("orchestrator", "planners", "launch", "monitor")
NEEDING_AN_EXTRA = (".launch.runtime", ".orchestrator.rank", ".orchestrator.web.")
PROFILE = {
    "model": "made up",
    "num_gpus": 2,
    "gpus_per_node": 2,
    "quadratic_ms": 1e-6,
    "linear_ms": 0.1,
    "fixed_ms": 1.0,
    "alltoall_mb_per_token": 0.1,
    "v_gb_per_s": {"2": 10.0},
    "token_cap": 100,
}


def project() -> dict[str, Any]:
    document: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return document


def direct_dependencies(*extras: str) -> list[Requirement]:
    groups = [project()["dependencies"]]
    groups += [project()["optional-dependencies"][extra] for extra in extras]
    requirements = [Requirement(line) for group in groups for line in group]
    return [each for each in requirements if each.name != "trimtab"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def distributions_of(requirements: list[Requirement]) -> set[str]:
    """Canonical names of everything `requirements` pull in, as installed here."""
    found: set[str] = set()
    pending = [(each.name, extra) for each in requirements for extra in ("", *each.extras)]
    while pending:
        name, extra = pending.pop()
        found.add(canonicalize_name(name))
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            if canonicalize_name(needed.name) not in found:
                pending += [(needed.name, each) for each in ("", *needed.extras)]
    return found


def source_files() -> Iterator[Path]:
    for portion in PORTIONS:
        yield from (ROOT / portion / "trimtab").rglob("*.py")


def test_every_line_of_the_constraints_is_a_name_and_a_version() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"(#[^:]*(: .*)?)?|[\w.-]+==[\w.]+", line), line
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    extras = project()["optional-dependencies"]
    for requirement in direct_dependencies(*extras):
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version}"


def test_everything_the_base_train_and_monitor_installs_pull_is_pinned() -> None:
    pulled = distributions_of(direct_dependencies("train", "monitor", "dev"))
    cuda = {name for name in pulled if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert pulled - cuda - {"nvidia-ml-py"} <= pins().keys()


def test_every_import_is_of_a_declared_dependency() -> None:
    extras = ("fast", "train", "deepspeed", "ray", "monitor")
    declared = {canonicalize_name(each.name) for each in direct_dependencies(*extras)}
    providers = metadata.packages_distributions()
    for path in source_files():
        for module in imported_modules(path):
            if module in sys.stdlib_module_names or module == "trimtab":
                continue
            names = {canonicalize_name(name) for name in providers.get(module, [module])}
            assert names & declared, f"{path.relative_to(ROOT)} imports {module}"


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return modules


def test_no_init_file_closes_the_namespace() -> None:
    assert not [p for portion in PORTIONS for p in (ROOT / portion / "trimtab").glob("*.py")]


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without fetching anything."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_trimtab_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"trimtab", "trimtab-0.1.0.dist-info"}
    for package in ("core", "planners", "launch", "monitor", "orchestrator"):
        assert f"trimtab/{package}/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", *(f"{portion}/trimtab" for portion in PORTIONS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {line.partition("/")[2] for line in tracked.stdout.splitlines()}
    assert wanted <= names
    assert "trimtab/orchestrator/web/static/index.html" in names
    assert any(name.startswith("trimtab/orchestrator/templates/") for name in names)


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that sees the wheel and the base dependencies, and no other package."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    for name in distributions_of(direct_dependencies()):
        link_distribution(name, site)
    return folder / "bin" / "python"


def link_distribution(name: str, site: Path) -> None:
    distribution = metadata.distribution(name)
    for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
        if top != "__pycache__" and not (site / top).exists():
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))


def run_python(python: Path, *arguments: str) -> str:
    done = subprocess.run(
        [python, "-I", *arguments], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TRIMTAB = "import sys; from trimtab.orchestrator.cli.main import main; sys.exit(main())"


def test_the_base_install_has_no_torch(base_python: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'ray') if u.find_spec(n)])"
    assert run_python(base_python, "-c", code) == "[]\n"


def test_the_base_install_lists_every_command(base_python: Path) -> None:
    shown = run_python(base_python, "-c", TRIMTAB, "--help")
    for command in COMMANDS:
        assert f" {command} " in shown


def test_the_base_install_plans_a_step(base_python: Path, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    (tmp_path / "lengths").write_text("90\n10\n150\n")
    arguments = ["--profile", str(tmp_path / "profile.json"), "--gpus", "2", "--json"]
    arguments += ["--lengths", str(tmp_path / "lengths")]
    plan = json.loads(run_python(base_python, "-c", TRIMTAB, "plan-step", *arguments))
    groups = [group for wave in plan["waves"] for group in wave["groups"]]
    assert sorted(line for group in groups for line in group["sequences"]) == [0, 1, 2]


def test_the_base_install_imports_every_module_but_the_runtime(base_python: Path) -> None:
    code = f"""
import importlib, pkgutil, sys
for name in ("core", "planners", "launch", "monitor", "orchestrator"):
    package = importlib.import_module("trimtab." + name)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not any(part in module.name for part in {NEEDING_AN_EXTRA}):
            importlib.import_module(module.name)
print("torch" in sys.modules)
"""
    assert run_python(base_python, "-c", code) == "False\n"


def test_showing_help_imports_nothing_heavy(base_python: Path) -> None:
    heavy = ("torch", "pulp", "highspy", "starlette", "uvicorn", "wandb", "tokenizers")
    code = f"""
import contextlib, io, sys
from trimtab.orchestrator.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
print([name for name in {heavy} if name in sys.modules])
"""
    assert run_python(Path(sys.executable), "-c", code) == "[]\n"
