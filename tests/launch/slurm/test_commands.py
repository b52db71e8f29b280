"""Slurm's commands as this machine has them, or has them not."""

from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.launch.slurm import commands
from trimtab.launch.slurm.commands import Answer, ask, output_of
from trimtab.launch.slurm.restd import SlurmRestd
from trimtab.launch.slurm.scheduler import submission_environment


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_command_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^slurm: this machine has no command squeue; submit"):
        ask(["squeue"])


def test_a_command_that_does_not_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(tmp_path, "squeue", "exec sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.2)
    with pytest.raises(InputError, match=r"^slurm: squeue has not answered for 0 s; see with"):
        ask(["squeue"])


@pytest.mark.parametrize(
    "words",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "squeue: error: fetch_config: DNS SRV lookup failed\n"
        "squeue: fatal: Could not establish a configuration source",
    ],
)
def test_a_controller_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    command(tmp_path, "squeue", f"echo '{words}' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match=r"^slurm: the cluster cannot be reached: squeue: "):
        ask(["squeue"])


def test_slurms_words_are_kept_in_one_line() -> None:
    errors = (
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n\n"
    )
    assert Answer(exit_code=1, output="", errors=errors).words == (
        "invalid partition specified: nope; Batch job submission failed: Invalid partition "
        "name specified"
    )
    assert Answer(exit_code=3, output="", errors=" \n").words == "exit code 3, without a word"


def test_a_users_defaults_for_the_commands_do_not_reach_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command(tmp_path, "squeue", "env")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SQUEUE_FORMAT", "%u")
    monkeypatch.setenv("SINFO_PARTITION", "none")
    monkeypatch.setenv("SLURM_CONF", "/etc/kept")
    said = output_of(["squeue"])
    assert "SLURM_CONF=/etc/kept" in said
    assert "SQUEUE_FORMAT" not in said
    assert "SINFO_PARTITION" not in said


def test_what_would_overrule_the_script_is_not_inherited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        *("SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SBATCH_GPUS"),
        *("SBATCH_NO_REQUEUE", "SBATCH_WAIT", "SBATCH_EXPORT", "SBATCH_ACCOUNT"),
        *("SLURM_CPUS_PER_TASK", "SLURM_JOB_ID", "SRUN_CPUS_PER_TASK", "SLURM_CONF"),
        *("WANDB_API_KEY", "SLURM_CLUSTERS"),
    ):
        monkeypatch.setenv(name, "x")
    script = "#!/bin/bash\n#SBATCH --partition=main\n#SBATCH --time=10\n"
    kept = submission_environment(script)
    names = {name for name in kept if name.startswith(("SBATCH_", "SLURM_", "SRUN_", "WANDB_"))}
    assert names == {"SBATCH_ACCOUNT", "SLURM_CONF", "WANDB_API_KEY", "SLURM_CLUSTERS"}


@pytest.mark.parametrize(
    "address",
    ["/run/sock", "unix:relative", "ftp://host", "http://", "host:6820", "http://h:x"],
)
def test_addresses_of_slurmrestd_have_a_form(address: str) -> None:
    with pytest.raises(InputError, match=r"^SLURMRESTD: expected unix:/PATH or http://HOST:"):
        SlurmRestd(address)


def test_a_slurmrestd_that_does_not_answer_is_told(tmp_path: Path) -> None:
    restd = SlurmRestd(f"unix:{tmp_path}/sock")
    with pytest.raises(InputError, match=r"^SLURMRESTD: slurmrestd at unix:.* unset SLURM"):
        restd.jobs()
