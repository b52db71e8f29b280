"""Which ranks each group of a wave gets, and what a worse place costs.

Ranks are numbered node by node. A group lies inside one node where it fits, else on whole
nodes and a part of one more. Groups that fit in no node as a whole straddle two or more. The
costs of a profile are those of the best place; `placed_seconds` charges a group that

- is on more nodes than it needs: its bandwidth is that of the narrowest degree wider than a
  node (where the profile has one) if it needs only one node, else less by nodes it has more;
- shares a node with another group that also leaves it: they share the node's NICs evenly.

So a placed plan is never shorter than the same plan by base costs, and its bound holds.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from trimtab.core.plan import Wave
from trimtab.core.profile import GroupOption, StepProfile
from trimtab.planners.attention_costs import SharingCosts, sharing_costs
from trimtab.planners.steps.node_packing import NodePacking, pack_nodes

Ranks = tuple[int, ...]

_MOST_NODES_COMPARED = 32
"""Nodes looked at for the one where most of the sets that a node needs exist."""


def placed_seconds(
    wave: Wave, lengths: Sequence[int], *, profile: StepProfile
) -> tuple[float, ...]:
    """Time of every group of a wave where it lies, the fixed time of the wave included.

    Args:
        wave: The groups.
        lengths: Tokens of every sequence of the batch.
        profile: What groups cost, and how many ranks a node has.

    Raises:
        InfeasibleError: The profile has no such degree of this kind.
    """
    nodes = [_nodes_of(group.ranks, profile.gpus_per_node) for group in wave.groups]
    leaving = Counter(node for each in nodes if len(each) > 1 for node in each)
    inside: dict[GroupOption, SharingCosts] = {}
    seconds = []
    for group, each in zip(wave.groups, nodes, strict=True):
        option = GroupOption(degree=group.degree, attention=group.attention)
        if len(each) > 1:
            num_sharing = max(leaving[node] for node in each)
            costs = _across_nodes(
                option, profile=profile, num_nodes=len(each), num_sharing=num_sharing
            )
        else:
            if option not in inside:
                inside[option] = sharing_costs(option, profile=profile)
            costs = inside[option]
        work_s = costs.group_work([lengths[index] for index in group.sequences])
        seconds.append(profile.fixed_s + work_s / group.degree)
    return tuple(seconds)


def _nodes_of(ranks: Ranks, ranks_per_node: int) -> set[int]:
    if len(ranks) == 1:
        return {ranks[0] // ranks_per_node}
    return {rank // ranks_per_node for rank in ranks}


def _across_nodes(
    option: GroupOption, *, profile: StepProfile, num_nodes: int, num_sharing: int
) -> SharingCosts:
    """Costs of a group on several nodes, of which other groups share one's NICs."""
    needed = -(-option.degree // profile.gpus_per_node)
    own = profile.bytes_per_s(option.degree, option.attention)
    far = own * needed / num_nodes
    if needed == 1:
        far = min(own, _far_bytes_per_s(option, profile=profile))
    return sharing_costs(option, profile=profile, bytes_per_s=far / num_sharing)


def _far_bytes_per_s(option: GroupOption, *, profile: StepProfile) -> float:
    """What the narrowest group wider than a node sends over; infinite where there is none."""
    wide = [
        other.degree
        for other in profile.options
        if other.attention == option.attention and other.degree > profile.gpus_per_node
    ]
    return profile.bytes_per_s(wide[0], option.attention) if wide else float("inf")


class RankBlocks:
    """Rank sets for wave after wave, few of them different.

    Sets that exist are taken again where that costs nothing. New ones lie at canonical places
    of a node, so that equal groups of different waves and steps get equal sets.
    """

    def __init__(
        self, num_ranks: int, *, ranks_per_node: int, existing: Iterable[Ranks] = ()
    ) -> None:
        self._per_node = min(ranks_per_node, num_ranks)
        starts = range(0, num_ranks, self._per_node)
        self._nodes = [tuple(range(s, min(s + self._per_node, num_ranks))) for s in starts]
        self._inside: list[dict[int, list[Ranks]]] = [{} for _ in self._nodes]
        """Of every node, the known sets within it by their degree."""
        self._across: dict[int, list[Ranks]] = {}
        """Known sets on several nodes by their degree."""
        self._known: set[Ranks] = set()
        for ranks in existing:
            if max(ranks) < num_ranks:
                self._remember(ranks)

    def place(self, degrees: Sequence[int]) -> list[Ranks]:
        """Disjoint rank sets for the groups of one wave.

        Args:
            degrees: Of every group; together no more than the ranks. Of equal degrees, the
                first gets the best place.
        """
        wave = _Wave(self, self._nodes)
        order = sorted(range(len(degrees)), key=lambda at: -degrees[at])
        sets = wave.place([degrees[at] for at in order])
        for ranks in sets:
            self._remember(ranks)
        best_first = sorted(
            sets, key=lambda ranks: (-len(ranks), self._num_nodes(ranks), ranks)
        )
        placed: list[Ranks] = [()] * len(degrees)
        for at, ranks in zip(order, best_first, strict=True):
            placed[at] = ranks
        return placed

    @property
    def ranks_per_node(self) -> int:
        return self._per_node

    def inside(self, node: int, degree: int) -> Sequence[Ranks]:
        """Known sets of a degree within a node."""
        return self._inside[node].get(degree, ())

    def across(self, degree: int) -> Sequence[Ranks]:
        """Known sets of a degree on several nodes."""
        return self._across.get(degree, ())

    def num_reused(self, node: int, degrees: Sequence[int]) -> int:
        """How many groups would find a set in a free node."""
        free = set(self._nodes[node])
        num = 0
        for degree in degrees:
            known = next((r for r in self.inside(node, degree) if free.issuperset(r)), None)
            if known is not None:
                free.difference_update(known)
                num += 1
        return num

    def _num_nodes(self, ranks: Ranks) -> int:
        return len(_nodes_of(ranks, self._per_node))

    def _remember(self, ranks: Ranks) -> None:
        if len(ranks) < 2 or ranks in self._known:
            return
        self._known.add(ranks)
        within = self._num_nodes(ranks) == 1
        sets = self._inside[ranks[0] // self._per_node] if within else self._across
        sets.setdefault(len(ranks), []).append(ranks)


class _Wave:
    """The free ranks of one wave while its groups are placed."""

    def __init__(self, blocks: RankBlocks, nodes: Sequence[Ranks]) -> None:
        self._blocks, self._nodes = blocks, nodes
        self._per_node = blocks.ranks_per_node
        self._free = [set(node) for node in nodes]
        self._straddled: set[int] = set()
        self._whole = [n for n, node in enumerate(nodes) if len(node) == self._per_node]

    def place(self, degrees: Sequence[int]) -> list[Ranks]:
        """Sets in the order of `degrees`, which descend."""
        sets: list[set[int]] = [set() for _ in degrees]
        for at, degree in enumerate(degrees):
            if degree >= self._per_node:
                sets[at] |= self._whole_nodes(degree)
        rest = [degree - len(ranks) for degree, ranks in zip(degrees, sets, strict=True)]
        parts = [at for at, size in enumerate(rest) if size > 1 or (size and sets[at])]
        free = [n for n, node in enumerate(self._nodes) if len(self._free[n]) == len(node)]
        packing = pack_nodes(
            [rest[at] for at in parts],
            [len(self._nodes[node]) for node in free],
            sharers=[bool(sets[at]) for at in parts],
        )
        for node, items in self._assigned(packing, free, sizes=[rest[at] for at in parts]):
            members = [parts[item] for item in items]
            taken = self._inside_sets(node, [(rest[at], not sets[at]) for at in members])
            for at, ranks in zip(members, taken, strict=True):
                sets[at] |= ranks
        for item in packing.left:
            at = parts[item]
            sets[at] |= self._straddling(rest[at], known=not sets[at])
        singles = (rank for node in self._free for rank in sorted(node))
        for ranks in sets:
            if not ranks:
                ranks.add(next(singles))
        return [tuple(sorted(ranks)) for ranks in sets]

    def _whole_nodes(self, degree: int) -> set[int]:
        """As many whole nodes as `degree` fills: known ones, an aligned run, or the first."""
        num, whole = degree // self._per_node, self._whole
        if len(whole) < num:
            return set()
        chosen = whole[:num]
        known = self._known_across(degree, num_nodes=num) if num > 1 else ()
        if known and degree % self._per_node == 0:
            chosen = sorted({rank // self._per_node for rank in known})
        else:
            for at, first in enumerate(whole):
                if first % num == 0 and whole[at : at + num] == [*range(first, first + num)]:
                    chosen = whole[at : at + num]
                    break
        self._whole = [node for node in whole if node not in chosen]
        return self._take(rank for node in chosen for rank in self._nodes[node])

    def _assigned(
        self, packing: NodePacking, free: Sequence[int], *, sizes: Sequence[int]
    ) -> Iterable[tuple[int, tuple[int, ...]]]:
        """A free node for every packed one, where most of the sets it needs are known."""
        left = list(free)
        patterns = [
            (sorted((sizes[item] for item in items), reverse=True), items, capacity)
            for items, capacity in zip(
                packing.nodes, (len(self._nodes[node]) for node in free), strict=True
            )
            if items
        ]
        for wanted, items, capacity in sorted(patterns, reverse=True):
            alike = (node for node in left if len(self._nodes[node]) == capacity)
            best = most = -1
            for node in islice(alike, _MOST_NODES_COMPARED):
                num = self._blocks.num_reused(node, wanted)
                if num > most:
                    best, most = node, num
                if num == len(wanted):
                    break
            left.remove(best)
            yield best, items

    def _inside_sets(self, node: int, groups: Sequence[tuple[int, bool]]) -> list[set[int]]:
        """Ranks of one node for groups of (size, whether known sets may serve).

        Known sets first. Then sizes that are no powers of two at multiples of themselves, then
        powers of two aligned; what finds no such place gets the first free ranks.
        """
        found: list[set[int]] = [set() for _ in groups]
        order = sorted(range(len(groups)), key=lambda at: -groups[at][0])
        for at in order:
            size, may_reuse = groups[at]
            if may_reuse:
                known = next(
                    (r for r in self._blocks.inside(node, size) if self._free[node] >= set(r)),
                    (),
                )
                found[at] = self._take(known)
        for at in sorted(order, key=lambda at: groups[at][0].bit_count() == 1):
            if not found[at]:
                found[at] = self._take(self._new_set(node, groups[at][0]))
        return found

    def _new_set(self, node: int, size: int) -> Iterable[int]:
        ranks, free = self._nodes[node], self._free[node]
        for start in range(0, len(ranks) - size + 1, size):
            place = ranks[start : start + size]
            if free.issuperset(place):
                return place
        return sorted(free)[:size]

    def _straddling(self, size: int, *, known: bool) -> set[int]:
        """Free ranks on as few nodes as can be, not those of another straddling group."""
        chosen: list[int] = []
        missing = size
        while missing:
            open_nodes = [n for n in range(len(self._nodes)) if self._free[n]]
            rest = [n for n in open_nodes if n not in chosen]
            enough = [n for n in rest if len(self._free[n]) >= missing]
            node = min(
                enough or rest,
                key=lambda n: (
                    n in self._straddled,
                    len(self._free[n]) if enough else -len(self._free[n]),
                ),
            )
            chosen.append(node)
            missing -= min(missing, len(self._free[node]))
        if known:
            reused = self._known_across(size, num_nodes=len(chosen))
            if reused:
                chosen = sorted({rank // self._per_node for rank in reused})
                self._straddled |= set(chosen)
                return self._take(reused)
        self._straddled |= set(chosen)
        ranks = [rank for node in chosen for rank in sorted(self._free[node])]
        return self._take(ranks[:size])

    def _known_across(self, degree: int, *, num_nodes: int) -> Ranks:
        """A known set that is free and on no more nodes; empty where there is none."""
        for ranks in self._blocks.across(degree):
            nodes = {rank // self._per_node for rank in ranks}
            is_free = all(rank in self._free[rank // self._per_node] for rank in ranks)
            if is_free and len(nodes) <= num_nodes and not nodes & self._straddled:
                return ranks
        return ()

    def _take(self, ranks: Iterable[int]) -> set[int]:
        taken = set(ranks)
        for rank in taken:
            self._free[rank // self._per_node].discard(rank)
        return taken
