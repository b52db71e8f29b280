"""Islands and the ways between them."""

from collections.abc import Callable

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, IslandLink, Link, NicSpec, NodeSpec
from trimtab.core.errors import InputError


def _node(island: str) -> NodeSpec:
    return NodeSpec(
        name=island,
        count=1,
        gpu=GpuSpec(name="gpu", memory_bytes=1, memory_bytes_per_s=1.0),
        gpus_per_node=8,
        intra_node=Link(bytes_per_s=1e9, latency_s=0.0),
        nics=(NicSpec(kind="ethernet", count=1, bytes_per_s=1e9, latency_s=0.0),),
        island=island,
    )


def _link(
    source: str, target: str, *, gb_per_s: float = 1.0, one_way: bool = False
) -> IslandLink:
    link = Link(bytes_per_s=gb_per_s * 1e9, latency_s=1e-3)
    return IslandLink(islands=(source, target), link=link, one_way=one_way)


def _cluster(islands: str, *links: IslandLink) -> ClusterSpec:
    return ClusterSpec(name="c", nodes=tuple(map(_node, islands)), links=links)


def test_a_link_goes_both_ways_unless_it_says_one_way() -> None:
    cluster = _cluster(
        "ab",
        _link("a", "b", gb_per_s=2, one_way=True),
        _link("b", "a", gb_per_s=3, one_way=True),
    )
    assert cluster.way("a", "b").bytes_per_s == 2e9
    assert cluster.way("b", "a").bytes_per_s == 3e9
    both = _cluster("ab", _link("a", "b"))
    assert both.way("a", "b") == both.way("b", "a")


def test_a_route_takes_the_widest_way_even_if_it_is_longer() -> None:
    links = (
        _link("a", "c", gb_per_s=1),
        _link("a", "b", gb_per_s=4),
        _link("b", "c", gb_per_s=2),
    )
    assert _cluster("abc", *links).route("a", "c") == (("a", "b"), ("b", "c"))


def test_of_equally_wide_ways_the_shorter_is_taken() -> None:
    links = (_link("a", "c"), _link("a", "b", gb_per_s=4), _link("b", "c"))
    assert _cluster("abc", *links).route("a", "c") == (("a", "c"),)


def test_without_links_the_nics_join_all_islands() -> None:
    assert _cluster("ab").route("a", "b") == ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: _cluster("ab", _link("a", "b", one_way=True)),
            "no way leads from the island 'b' to 'a'",
        ),
        (lambda: _cluster("abc", _link("a", "b")), "no way leads from the island 'a' to 'c'"),
        (
            lambda: _cluster("ab", _link("a", "b"), _link("b", "a")),
            "the way from 'a' to 'b' is given twice",
        ),
        (lambda: _link("a", "b", gb_per_s=0.0), "link.gb_per_s: expected a finite number > 0"),
        (
            lambda: NicSpec(
                kind="roce", count=1, bytes_per_s=1.0, latency_s=0.0, interface="eth0; reboot"
            ),
            "nic.interface: expected the name of a network device",
        ),
        (
            lambda: NicSpec(
                kind="roce", count=1, bytes_per_s=1.0, latency_s=0.0, devices=("mlx5_0,x",)
            ),
            "nic.devices: expected the name of a network device",
        ),
        (
            lambda: NicSpec(kind="roce", count=1, bytes_per_s=1.0, latency_s=0.0, gid_index=-1),
            "nic.gid_index: expected a whole number >= 0",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
