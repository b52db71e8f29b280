"""A cluster's partitions against what is asked for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec, Request, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.core.scheduling import RestartSpec, SlurmOptions
from trimtab.launch.slurm.capacity import (
    NodeGroup,
    check_capacity,
    check_cores,
    lacks_nodes_now,
    leaves_cores_open,
    node_groups,
)
from trimtab.launch.slurm.scheduler import SlurmScheduler

SINFO = """\
main*|up|idle|2|16|1:00:00|gpu:8
main*|up|mixed|1|16|1:00:00|gpu:h100:4(S:0-1),nvme:2
cpu|up|allocated|8|64+|infinite|(null)
old|up|down*|4|16|infinite|gpu:v100:8(S:0-1),gpu:k80:8
shut|down|idle|4|16|infinite|gpu:8
"""

Ask = Callable[..., Request]


@pytest.fixture
def ask(scheduler: SlurmScheduler, gpu_job: JobSpec) -> Ask:
    """`ask(num_ranks=16, num_nodes=2, partition="main")`: a request with GPUs."""

    def make(
        *, num_ranks: int = 8, num_nodes: int = 1, spare: int = 0, **options: object
    ) -> Request:
        job = replace(
            gpu_job,
            num_ranks=num_ranks,
            num_nodes=num_nodes,
            restart=RestartSpec(spare_nodes=spare),
            slurm=SlurmOptions(**options),  # type: ignore[arg-type]  # as each test needs
        )
        return scheduler.prepare(job, layout=Layout(dp=num_ranks), run_dir=Path("/r/run"))

    return make


def test_groups_of_nodes_are_read() -> None:
    groups = node_groups(SINFO)
    assert groups[1] == NodeGroup(
        partition="main",
        is_default=True,
        num_nodes=1,
        num_cpus=16,
        num_gpus=4,
        is_usable=True,
        time_limit_s=3_600,
    )
    assert [group.num_gpus for group in groups] == [8, 4, 0, 16, 8]
    assert [group.num_cpus for group in groups] == [16, 16, 64, 16, 16]
    assert [group.is_usable for group in groups] == [True, True, True, False, False]


def test_what_fits_passes(ask: Ask) -> None:
    groups = node_groups(SINFO)
    check_capacity(ask(num_ranks=16, num_nodes=2), groups)
    check_capacity(ask(num_ranks=12, num_nodes=3, time="60"), groups)
    check_capacity(ask(num_ranks=16, num_nodes=1, partition="main,old"), groups)
    check_capacity(ask(num_ranks=8, partition="cpu,main"), groups)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"num_ranks": 24, "num_nodes": 3},
            "num_nodes: 24 ranks ask for 3 nodes with 8 GPUs each, but the partition 'main' "
            "has 2 with 8 GPUs and 1 with 4 GPUs",
        ),
        (
            {"num_ranks": 16, "num_nodes": 2, "spare": 1},
            "num_nodes: 16 ranks ask for 3 nodes (1 of them spare) with 8 GPUs each, but the "
            "partition 'main' has 2 with 8 GPUs and 1 with 4 GPUs",
        ),
        (
            {"partition": "cpu"},
            "num_nodes: 8 ranks ask for 1 node with 8 GPUs each, but the partition 'cpu' has 8 "
            "with 0 GPUs",
        ),
        (
            {"partition": "mian"},
            "slurm.partition: unknown partition 'mian'; did you mean 'main'?",
        ),
        (
            {"partition": "main,x"},
            "slurm.partition: unknown partition 'x'; expected one of cpu, main, old, shut",
        ),
        (
            {"time": "1:00:01"},
            "slurm.time: the partition 'main' ends jobs after 3600 s, got 3601 s",
        ),
        (
            {"time": "UNLIMITED"},
            "slurm.time: the partition 'main' ends jobs after 3600 s, got no limit",
        ),
    ],
)
def test_what_no_partition_could_run_is_refused(
    ask: Ask, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as refused:
        check_capacity(ask(**asked), node_groups(SINFO))
    assert str(refused.value) == message


def test_cores_count_on_cpus(
    scheduler: SlurmScheduler, script_job: Callable[..., ScriptSpec]
) -> None:
    job = script_job(num_ranks=34)
    request = scheduler.prepare(job, layout=None, run_dir=Path("/r/run"))
    with pytest.raises(InputError, match=r"ask for 2 nodes with 17 cores each, but the part"):
        check_capacity(request, node_groups(SINFO))


def test_a_cluster_without_a_default_partition_answers_itself(ask: Ask) -> None:
    check_capacity(ask(num_ranks=32, num_nodes=4), node_groups(SINFO.replace("*|up", "|up")))


def test_nodes_that_are_down_may_come_back(ask: Ask) -> None:
    groups = node_groups(SINFO)
    assert lacks_nodes_now(ask(partition="old"), groups)
    assert lacks_nodes_now(ask(partition="shut"), groups)
    assert not lacks_nodes_now(ask(), groups)


def test_gpus_without_a_word_on_cores_need_a_default_of_the_cluster(ask: Ask) -> None:
    groups = node_groups(SINFO)
    request = ask()
    assert leaves_cores_open(request)
    plain = "PartitionName=main OverSubscribe=NO JobDefaults=(null)\n"
    config = "JobDefaults             = (null)\nSelectType              = select/cons_tres\n"
    with pytest.raises(InputError, match=r"^slurm.args: say how many cores the 8 ranks of a"):
        check_cores(request, groups, partitions=plain, config=config)
    for partitions, cluster in (
        ("PartitionName=main OverSubscribe=NO JobDefaults=DefCpuPerGPU=12\n", config),
        ("PartitionName=main OverSubscribe=EXCLUSIVE JobDefaults=(null)\n", config),
        (plain, config.replace("(null)", "DefCpuPerGPU=12")),
        (plain, config.replace("cons_tres", "linear")),
    ):
        check_cores(request, groups, partitions=partitions, config=cluster)


@pytest.mark.parametrize("arg", ["cpus-per-task=64", "cpus-per-gpu=8", "exclusive"])
def test_a_word_on_cores_is_enough(ask: Ask, arg: str) -> None:
    assert not leaves_cores_open(ask(args=(arg,)))
