"""Which checkpoint is taken; saving and loading are tested end to end."""

import pytest

from trimtab.launch.runtime.checkpoint import choice_among
from trimtab.launch.runtime.checkpoint_files import Found, Manifest


def whole(name: str, save_id: str = "one") -> dict[str, Found]:
    manifest = Manifest(save_id=save_id, data="abc", files={"__0_0.distcp": 100})
    return {name: Found(name=name, manifest=manifest, fault=None)}


def broken(name: str, save_id: str = "one") -> dict[str, Found]:
    manifest = Manifest(save_id=save_id, data="abc", files={"__0_0.distcp": 100})
    return {name: Found(name=name, manifest=manifest, fault=f"{name}/a is missing")}


OLD, NEW = "step-00000010", "step-00000020"


def test_the_newest_whole_one_is_taken_and_why_not_a_newer_is_told() -> None:
    choice = choice_among([whole(OLD) | broken(NEW)], {})
    assert (choice.name, choice.fetch) == (OLD, False)
    assert choice.passed_over == (f"{NEW}/a is missing",)


def test_without_any_there_is_nothing_to_tell() -> None:
    choice = choice_among([{}, {}], {})
    assert (choice.name, choice.passed_over) == (None, ())


@pytest.mark.parametrize(
    "local",
    [
        [whole(NEW), {}],
        [whole(NEW), broken(NEW)],
        [whole(NEW), whole(NEW, "another")],
        [whole(NEW, "another"), whole(NEW, "another")],
    ],
    ids=["new-node", "part-of-it", "two-courses", "an-abandoned-course"],
)
def test_what_any_node_lacks_is_fetched(local: list[dict[str, Found]]) -> None:
    choice = choice_among(local, whole(NEW))
    assert (choice.name, choice.fetch, choice.passed_over) == (NEW, True, ())


def test_what_every_node_has_is_not_fetched() -> None:
    choice = choice_among([whole(NEW), whole(NEW)], whole(NEW))
    assert (choice.name, choice.fetch) == (NEW, False)


def test_what_every_node_has_is_taken_before_an_older_one_at_the_address() -> None:
    choice = choice_among([whole(NEW)], whole(OLD) | broken(NEW))
    assert (choice.name, choice.fetch) == (NEW, False)


def test_what_was_not_carried_to_the_end_is_passed_over() -> None:
    choice = choice_among([broken(NEW), {}], whole(OLD))
    assert (choice.name, choice.fetch) == (OLD, True)
    assert choice.passed_over == (f"{NEW}/a is missing",)


def test_what_only_some_nodes_have_is_no_checkpoint() -> None:
    choice = choice_among([whole(NEW), {}], {})
    assert choice.name is None
    assert choice.passed_over == (f"{NEW} is not on every node",)


def test_steps_count_as_numbers() -> None:
    later = "step-100000000"
    assert choice_among([whole("step-99999999") | whole(later)], {}).name == later
