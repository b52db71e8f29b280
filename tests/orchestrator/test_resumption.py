"""What may change when a run goes on."""

import json
from dataclasses import fields, replace

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import CheckpointSpec, JobSpec, ScriptSpec, TelemetrySpec
from trimtab.core.scheduling import RestartSpec, SlurmOptions
from trimtab.orchestrator.resumption import resumed_job

SCRIPT = ScriptSpec(name="script", argv=("python", "x.py"), folder="/", num_ranks=2)


def test_a_run_goes_on_with_what_may_change(small_job: JobSpec) -> None:
    job = resumed_job(
        small_job,
        ["training.num_steps=99", "checkpoint.every_steps=5", "telemetry.wandb_project=null"],
    )
    training = replace(small_job.training, num_steps=99)
    assert job == replace(
        small_job, training=training, checkpoint=CheckpointSpec(every_steps=5)
    )


def test_every_telemetry_setting_may_change(small_job: JobSpec) -> None:
    for field in fields(TelemetrySpec):
        value = getattr(small_job.telemetry, field.name)
        text = json.dumps(value)
        assert resumed_job(small_job, [f"telemetry.{field.name}={text}"]) == small_job


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=1", "training.learning_rate cannot change in a run that goes"),
        ("name=other", "name cannot change"),
        ("checkpoint.start_from=x", r"checkpoint\.start_from cannot change"),
        ("training.num_step=9", "did you mean 'training.num_steps'"),
        ("training.num_steps", "expected the form a.b=c"),
        ("training.num_steps=many", "training.num_steps: expected a whole number, got 'many'"),
        ("training.num_steps=0", "training.num_steps: expected a whole number >= 1, got 0"),
        ("telemetry.silent_rank_s=-1", "silent_rank_s: expected a finite number > 0"),
        ("telemetry.silent_rank_s=NaN", "silent_rank_s: expected a finite number > 0"),
    ],
)
def test_what_may_not_change_is_refused_by_name(
    small_job: JobSpec, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resumed_job(small_job, [override])


def test_restarts_and_what_slurm_is_asked_for_may_change_also_of_a_script() -> None:
    asked = [
        "slurm.time=60",
        "slurm.qos=null",
        "restart.max_restarts=9",
        'slurm.args=["mem=1G"]',
    ]
    before = replace(SCRIPT, slurm=SlurmOptions(account="abc", qos="night"))
    assert resumed_job(before, asked) == replace(
        SCRIPT,
        slurm=SlurmOptions(account="abc", time="60", args=("mem=1G",)),
        restart=RestartSpec(max_restarts=9),
    )


def test_a_task_of_an_array_goes_on_alone(small_job: JobSpec) -> None:
    slurm = SlurmOptions(array="0-3", account="abc")
    alone = resumed_job(replace(small_job, slurm=slurm), [])
    assert alone == replace(small_job, slurm=SlurmOptions(account="abc"))


def test_a_script_has_no_steps_to_change() -> None:
    with pytest.raises(InputError, match=r"training.num_steps cannot change in a run"):
        resumed_job(SCRIPT, ["training.num_steps=9"])
