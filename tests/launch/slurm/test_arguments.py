"""Options of sbatch that have no name of their own here."""

import pytest

from trimtab.core.errors import InputError
from trimtab.launch.slurm.arguments import further_arguments


def test_names_and_values_are_kept_in_order() -> None:
    args = ("mem=0", "exclusive", "mail-user=a b", "licenses=x=2")
    assert list(further_arguments(args).items()) == [
        ("mem", "0"),
        ("exclusive", None),
        ("mail-user", "a b"),
        ("licenses", "x=2"),
    ]


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (
            "account=x",
            r"^slurm.args: account has a place of its own: set slurm.account \(",
        ),
        ("nodes=2", r"^slurm.args: nodes has a place of its own: set num_nodes \(-N\)$"),
        ("job-name=x", r"^slurm.args: job-name has a place of its own: set name$"),
        ("container-image=x", r"set slurm.container_image$"),
        ("output=/x", r"^slurm.args: output is set by the script itself"),
        ("no-requeue", r"^slurm.args: no-requeue is set by the script itself"),
        ("gpus-per-task=1", r"^slurm.args: gpus-per-task cannot be used here: Slurm 24.11 "),
        ("wrap=touch bad", r"^slurm.args: wrap cannot be used here: "),
        (
            "acc=x",
            r"^slurm.args: acc is an abbreviation; write .* may take it for account\)$",
        ),
        ("out=/x", r"^slurm.args: out is an abbreviation"),
        ("--mem=1", r"^slurm.args: expected NAME=VALUE or NAME "),
        ("p=main", r"^slurm.args: expected NAME=VALUE or NAME "),
        ("mem =1", r"^slurm.args: expected NAME=VALUE or NAME "),
        ("", r"^slurm.args: expected NAME=VALUE or NAME "),
        ("=1", r"^slurm.args: expected NAME=VALUE or NAME "),
        ("mem\n#SBATCH --account=x", r"^slurm.args: expected NAME=VALUE or NAME "),
        ("mem=1\n#SBATCH --account=x", r"^slurm.args: mem: expected one line of printable"),
        ("mem=", r"^slurm.args: mem: expected some text, got ''"),
    ],
)
def test_arguments_that_are_refused(arg: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        further_arguments((arg,))


def test_an_argument_comes_once() -> None:
    with pytest.raises(InputError, match=r"^slurm.args: mem is given twice$"):
        further_arguments(("mem=1", "mem=2"))


@pytest.mark.parametrize("name", ["mem", "mem-per-gpu", "nice", "exclusive", "time-min"])
def test_other_options_of_sbatch_pass(name: str) -> None:
    assert further_arguments((name,)) == {name: None}
