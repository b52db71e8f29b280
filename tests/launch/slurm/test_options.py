"""Slurm's option values in its own forms."""

import pytest

from trimtab.core.errors import InputError
from trimtab.core.scheduling import SlurmOptions
from trimtab.launch.slurm.options import (
    array_indices,
    check_options,
    gpus_per_node,
    time_limit_s,
    warning_s,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 300),
        ("5:30", 330),
        ("1:00:00", 3_600),
        ("100:00:00", 360_000),
        ("2-0", 172_800),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("1-12:30:15", 131_415),
        ("0-1", 3_600),
        ("UNLIMITED", None),
        ("infinite", None),
        ("-1", None),
    ],
)
def test_time_limits(text: str, seconds: int | None) -> None:
    assert time_limit_s(text) == seconds


@pytest.mark.parametrize("text", ["0", "00:00", "0:0:0", "0-0:00:00"])
def test_a_limit_of_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^slurm.time: expected more than no time, got "):
        time_limit_s(text)


@pytest.mark.parametrize(
    "text",
    ["-5", "nan", "1h", "1:2:3:4", "1-", "-1-2", "1.5", " 5", "5\n", "\u0665", ""],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^slurm.time: expected minutes, minutes:seconds, "):
        time_limit_s(text)


def test_a_limit_beyond_slurms_own_is_refused() -> None:
    with pytest.raises(InputError, match=r"^slurm.time: expected at most 2147483647 minutes"):
        time_limit_s("9" * 30)


def test_a_limit_that_leaves_no_time_before_the_warning_is_refused() -> None:
    check_options(SlurmOptions(time="2:30"))
    with pytest.raises(InputError, match=r"^slurm.time: a limit of 149 s leaves no time to"):
        check_options(SlurmOptions(time="2:29"))
    check_options(SlurmOptions(time="2:29", signal="B:USR2@30"))


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("3", (3,)),
        ("0-3", (0, 1, 2, 3)),
        ("0-6:3,4%2", (0, 3, 4, 6)),
        ("5,1,1", (1, 5)),
        ("4000000", (4_000_000,)),
    ],
)
def test_arrays(text: str, indices: tuple[int, ...]) -> None:
    assert array_indices(text) == indices


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "1-", "-1", "3-1", "0-4:0", "1,,2", "1%", "1%0", "1%x", "0-1-2", "1 "),
        *("4000001", "0-10000", "0-999999999", "0-9999,10000"),
    ],
)
def test_other_arrays_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^slurm.array: expected "):
        array_indices(text)


def test_signals_that_the_keeper_waits_for() -> None:
    assert warning_s(SlurmOptions()) == 90
    assert warning_s(SlurmOptions(signal="B:SIGUSR2@300")) == 300
    assert warning_s(SlurmOptions(signal="RB:12@5")) == 5
    assert warning_s(SlurmOptions(signal="B:USR2")) == 60


@pytest.mark.parametrize("text", ["USR2@90", "R:USR2@90", "B:USR1@90", "B:TERM", "B:USR2@x"])
def test_signals_that_would_not_reach_the_keeper_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^slurm.signal: expected B:USR2@SECONDS, the signal"):
        check_options(SlurmOptions(signal=text))


@pytest.mark.parametrize(
    "text",
    ["afterok:12", "afterany:12:13,afternotok:14_3", "after:12+5?singleton", "aftercorr:7_*"],
)
def test_dependencies(text: str) -> None:
    check_options(SlurmOptions(dependency=text))


@pytest.mark.parametrize("text", ["12", "afterok", "afterok:", "afterok:x", "before:12"])
def test_other_dependencies_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^slurm.dependency: expected a form like afterok:"):
        check_options(SlurmOptions(dependency=text))


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\x00", "\x1b[31m", "x" * 8_001, "\udcff"])
def test_text_that_no_directive_holds_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^slurm.account: expected "):
        check_options(SlurmOptions(account=text))


def test_what_options_say_of_gpus() -> None:
    assert gpus_per_node(SlurmOptions()) is None
    assert gpus_per_node(SlurmOptions(gpus_per_node="8")) == 8
    assert gpus_per_node(SlurmOptions(gpus_per_node="h100:4")) == 4
    assert gpus_per_node(SlurmOptions(gres="gpu")) == 1
    assert gpus_per_node(SlurmOptions(gres="gpu:8,nvme:2")) == 8
    assert gpus_per_node(SlurmOptions(gres="gpu:a100:2,gpu:h100:3")) == 5
    assert gpus_per_node(SlurmOptions(gres="nvme:2")) is None
    with pytest.raises(InputError, match=r"^slurm.gpus_per_node: expected a number or TYPE:"):
        gpus_per_node(SlurmOptions(gpus_per_node="eight"))


def test_a_mount_without_a_container_is_refused() -> None:
    with pytest.raises(InputError, match=r"^slurm.container_mounts: has no container; set "):
        check_options(SlurmOptions(container_mounts="/a:/b"))
    check_options(SlurmOptions(container_name="kept", container_mounts="/a:/b"))
