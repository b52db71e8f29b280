"""`trimtab doctor`: what works on this machine, and what to do about the rest."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trimtab.core.errors import ExitCode
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

Level = Literal["ok", "warn", "fail"]

_STYLES: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_BASE_PACKAGES = ("numpy", "omegaconf", "pulp", "highspy", "rich", "typer")
_EXTRAS = {
    "train": ("torch", "megatron-core", "safetensors", "tokenizers"),
    "deepspeed": ("deepspeed",),
    "ray": ("ray",),
    "monitor": ("starlette", "uvicorn", "wandb", "nvidia-ml-py"),
}
_OLDEST_PYTHON = (3, 11)
_LEAST_FREE_GIB = 5.0
_GLOO_TIMEOUT_S = 60
_GLOO_PROGRAM = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
total = torch.ones(1)
dist.all_reduce(total)
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: CPU"
print(f"torch {torch.__version__}, {device}")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    level: Level
    check: str
    found: str
    advice: str = ""


def doctor(json: JsonOption = False) -> None:
    """Check this machine and installation; exits 1 if something essential fails."""
    findings = [finding for check in _CHECKS for finding in check()]
    if json:
        print_json(_document(findings))
    else:
        _show(console(), findings)
    if any(finding.level == "fail" for finding in findings):
        import typer

        raise typer.Exit(ExitCode.JOB_FAILED)


def _document(findings: list[Finding]) -> dict[str, object]:
    return {
        "schema": 1,
        "ok": all(finding.level != "fail" for finding in findings),
        "findings": [
            {
                "level": finding.level,
                "check": finding.check,
                "found": finding.found,
                "advice": finding.advice,
            }
            for finding in findings
        ],
    }


def _show(out: "Console", findings: list[Finding]) -> None:
    from rich.markup import escape

    for finding in findings:
        style = _STYLES[finding.level]
        level = f"[{style}]{finding.level:<4}[/{style}]"
        out.print(f"{level}  {finding.check:<18} {escape(finding.found)}", soft_wrap=True)
        if finding.advice:
            out.print(f"{'':<25}{escape(finding.advice)}", style="dim", soft_wrap=True)


def _python() -> list[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info >= _OLDEST_PYTHON:
        return [Finding(level="ok", check="python", found=f"{version} at {sys.executable}")]
    advice = "install Python 3.11 or newer"
    return [Finding(level="fail", check="python", found=version, advice=advice)]


def _base_packages() -> list[Finding]:
    found, missing = _versions(_BASE_PACKAGES)
    if not missing:
        return [Finding(level="ok", check="base packages", found=", ".join(found))]
    return [
        Finding(
            level="fail",
            check="base packages",
            found=f"missing: {', '.join(missing)}",
            advice="pip install trimtab",
        )
    ]


def _extras() -> list[Finding]:
    findings = []
    for extra, packages in _EXTRAS.items():
        found, missing = _versions(packages)
        check = f"extra {extra}"
        if not missing:
            findings.append(Finding(level="ok", check=check, found=", ".join(found)))
            continue
        findings.append(
            Finding(
                level="warn",
                check=check,
                found=f"missing: {', '.join(missing)}",
                advice=f"only if you need it: pip install 'trimtab[{extra}]'",
            )
        )
    return findings


def _versions(packages: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """`name version` of the installed packages, and the names of the missing ones."""
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return found, missing


def _torch() -> list[Finding]:
    """Start a process group of one on loopback: what every rank does first."""
    if importlib.util.find_spec("torch") is None:
        return []
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", _GLOO_PROGRAM]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GLOO_TIMEOUT_S, env=environment
        )
    except subprocess.TimeoutExpired:
        found = f"no answer in {_GLOO_TIMEOUT_S} s"
        return [Finding(level="fail", check="gloo on loopback", found=found)]
    if done.returncode == 0:
        return [Finding(level="ok", check="gloo on loopback", found=done.stdout.strip())]
    last_line = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    advice = "is the loopback interface up? ip link set lo up"
    return [
        Finding(level="fail", check="gloo on loopback", found=last_line, advice=advice),
    ]


def _gpus() -> list[Finding]:
    if importlib.util.find_spec("pynvml") is None:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        advice = "training runs on the CPU; for GPUs install the NVIDIA driver"
        return [Finding(level="warn", check="NVML", found=str(error), advice=advice)]
    return [Finding(level="ok", check="NVML", found=f"{len(names)} GPUs: {', '.join(names)}")]


def _cores() -> list[Finding]:
    from trimtab.launch.processes import usable_cores

    return [Finding(level="ok", check="processor cores", found=str(usable_cores()))]


def _disk() -> list[Finding]:
    from trimtab.core.units import GIB
    from trimtab.orchestrator import runs_folder

    root = runs_folder.runs_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free_gib = shutil.disk_usage(existing).free / GIB
    found = f"{free_gib:.1f} GiB free for {root}"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        advice = "set TRIMTAB_RUNS_DIR to a folder you can write to"
        found = f"{existing} is not a folder one can write to"
        return [Finding(level="fail", check="run directories", found=found, advice=advice)]
    if free_gib < _LEAST_FREE_GIB:
        advice = "checkpoints need room; set TRIMTAB_RUNS_DIR to a larger disk"
        return [Finding(level="warn", check="run directories", found=found, advice=advice)]
    return [Finding(level="ok", check="run directories", found=found)]


def _ports() -> list[Finding]:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 0))
        except OSError as error:
            found = f"cannot listen on 127.0.0.1: {error.strerror}"
            return [Finding(level="fail", check="loopback ports", found=found)]
    return [Finding(level="ok", check="loopback ports", found="127.0.0.1 can be listened on")]


def _slurm() -> list[Finding]:
    from trimtab.core.errors import InputError
    from trimtab.launch.slurm.capacity import SINFO_FORMAT, node_groups
    from trimtab.launch.slurm.commands import output_of

    if shutil.which("sbatch") is None:
        found = "no sbatch in the PATH"
        advice = "only if you need it: submit -s slurm works on a cluster's login node"
        return [Finding(level="ok", check="Slurm", found=found, advice=advice)]
    try:
        version = output_of(["sinfo", "--version"]).strip()
        groups = node_groups(output_of(["sinfo", "--noheader", f"--format={SINFO_FORMAT}"]))
    except InputError as error:
        advice = "is this a login node, and does SLURM_CONF name the cluster's slurm.conf?"
        return [Finding(level="warn", check="Slurm", found=str(error), advice=advice)]
    if not groups:
        advice = "ask the cluster's administrators which partition you may use"
        found = f"{version}, no partition that you may use"
        return [Finding(level="warn", check="Slurm", found=found, advice=advice)]
    partitions = dict.fromkeys(group.partition for group in groups)
    sizes = [
        f"{name} ({sum(g.num_nodes for g in groups if g.partition == name)} nodes)"
        for name in partitions
    ]
    found = f"{version}, partitions {', '.join(sizes)}"
    return [Finding(level="ok", check="Slurm", found=found)]


def _ray() -> list[Finding]:
    from trimtab.core.errors import InputError
    from trimtab.launch.ray.jobs_api import ADDRESS_VARIABLES, JobsApi, resolved_address

    if not any(os.environ.get(name) for name in ADDRESS_VARIABLES):
        found = f"{' and '.join(ADDRESS_VARIABLES)} name no cluster"
        advice = "only if you need it: submit -s ray takes --address http://HEAD:8265"
        return [Finding(level="ok", check="Ray", found=found, advice=advice)]
    try:
        address = resolved_address(None)
        nodes = JobsApi(address).live_nodes()
    except InputError as error:
        advice = f"start the cluster, or unset {' and '.join(ADDRESS_VARIABLES)}"
        return [Finding(level="warn", check="Ray", found=str(error), advice=advice)]
    found = f"{len(nodes)} live nodes at {address}"
    return [Finding(level="ok", check="Ray", found=found)]


_CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _base_packages,
    _extras,
    _torch,
    _gpus,
    _cores,
    _disk,
    _ports,
    _slurm,
    _ray,
)
