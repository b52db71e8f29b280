"""Slurm's short form of many names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.launch.slurm.hostlist import expanded


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("n1", ("n1",)),
        ("n1,n2", ("n1", "n2")),
        ("n[1-3]", ("n1", "n2", "n3")),
        ("n[1-2,08-10],login", ("n1", "n2", "n08", "n09", "n10", "login")),
        ("rack[1-2]n[01-02]-ib", ("rack1n01-ib", "rack1n02-ib", "rack2n01-ib", "rack2n02-ib")),
        ("[1-2]", ("1", "2")),
        ("n[098-101]", ("n098", "n099", "n100", "n101")),
        ("n[5]", ("n5",)),
        ("b2,b1", ("b2", "b1")),
    ],
)
def test_lists(text: str, names: tuple[str, ...]) -> None:
    assert expanded(text) == names


@pytest.mark.parametrize(
    "text",
    [
        *("n[", "n]", "n[1-]", "n[a]", "n[2-1]", "n[[1]]", ",", "n1,", ",n1", "a,,b", "a b"),
        *("n[1-999999999]", "n[]", "n[1,]"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^host list: expected a form like "):
        expanded(text)


@given(st.lists(st.from_regex(r"[a-z]{1,4}[0-9]{0,3}(-[a-z]{1,2})?", fullmatch=True)))
def test_names_without_brackets_stay_as_they_are(names: list[str]) -> None:
    assert expanded(",".join(names)) == tuple(names)
