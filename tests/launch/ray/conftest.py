from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.job import ScriptSpec
from trimtab.core.scheduling import RayOptions
from trimtab.launch.ray import jobs_api
from trimtab.launch.ray.scheduler import RayScheduler

HEAD = "http://head:8265"


@pytest.fixture(autouse=True)
def _no_address_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*jobs_api.ADDRESS_VARIABLES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scheduler() -> RayScheduler:
    python = ("/opt/venv/bin/python", "-P", "-m")
    return RayScheduler(
        rank_argv=(*python, "trimtab.orchestrator.rank"),
        keeper_argv=(*python, "trimtab.orchestrator.keeper"),
    )


@pytest.fixture
def script_job() -> Callable[..., ScriptSpec]:
    """`script_job(name=..., resource=...)`: four ranks of a script on two nodes."""

    def make(
        *,
        name: str = "mine",
        num_ranks: int = 4,
        needs_gpus: bool = False,
        address: str | None = HEAD,
        **options: object,
    ) -> ScriptSpec:
        return ScriptSpec(
            name=name,
            argv=("python", "my train.py", "--lr", "$(touch bad)"),
            folder="/home/kim/code",
            num_ranks=num_ranks,
            num_nodes=2,
            needs_gpus=needs_gpus,
            ray=RayOptions(address=address, **options),  # type: ignore[arg-type]  # as needed
        )

    return make


@pytest.fixture
def golden() -> Callable[[str], str]:
    """`golden("script")`: the submission that is expected, byte for byte."""
    return lambda name: (Path(__file__).parent / "golden" / f"{name}.json").read_text()
