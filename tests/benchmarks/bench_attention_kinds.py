"""When a ring beats Ulysses, what both together gain, and how few rank sets placement makes.

    python tests/benchmarks/bench_attention_kinds.py tests/data/seqlen/*.txt

Three Markdown tables, all of them predictions of `analytic_profile` for a model of 7B on nodes
of 8 A100, joined by a NIC for each GPU or one for all. Nothing is run.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec, PeakRate
from trimtab.core.errors import InfeasibleError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import StepProfile
from trimtab.planners.calibration import profile_from_document
from trimtab.planners.costs import analytic_profile, group_s
from trimtab.planners.steps.sequences import plan_step

_NUM_RANKS = 64
_TOKEN_CAP = 6_449
"""Of FlexSP's 7B, so that the longest sequences need many ranks here as there."""
_LENGTHS = (8_192, 32_768, 131_072)
_DEGREES = (4, 8, 16, 32)
_MODELS = (("32 heads", 32, 32), ("32 heads, 4 kv", 32, 4), ("12 heads, 4 kv", 12, 4))
_NICS = ((8, "a NIC a GPU"), (1, "one NIC a node"))
_NUM_BATCHES = 40


def profile_of(num_heads: int, num_kv_heads: int, num_nics: int) -> StepProfile:
    """A decoder of 32 layers with heads of 128 on 8 nodes of 8 A100."""
    hidden = 128 * num_heads
    model = ModelSpec(
        name="decoder", num_layers=32, hidden=hidden, ffn_hidden=4 * hidden,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=128, vocab=51_200,
        max_seq_tokens=2_048,
    )  # fmt: skip
    peaks = (PeakRate(precision="bf16", flop_per_s=312e12),)
    node = NodeSpec(
        name="a100", count=8, gpus_per_node=8, island="a",
        gpu=GpuSpec(
            name="A100", memory_bytes=80 * 2**30, memory_bytes_per_s=2.0e12, peaks=peaks
        ),
        intra_node=Link(bytes_per_s=300e9, latency_s=3e-6),
        nics=(NicSpec(kind="infiniband", count=num_nics, bytes_per_s=25e9, latency_s=5e-6),),
    )  # fmt: skip
    cluster = ClusterSpec(name="8 nodes", nodes=(node,))
    layout = Layout(dp=_NUM_RANKS, zero=3)
    profile = analytic_profile(model, cluster, layout, precision="bf16")
    return replace(profile, token_cap=min(_TOKEN_CAP, profile.token_cap))


def ratio_text(profile: StepProfile, degree: int, length: int) -> str:
    """A ring's time over Ulysses' for one sequence alone, fixed times left out."""
    ring_s = group_s([length], degree, profile=profile, attention="ring") - profile.fixed_s
    try:
        ulysses_s = group_s([length], degree, profile=profile) - profile.fixed_s
    except InfeasibleError:
        return "only ring"
    return f"{ring_s / ulysses_s:.2f}"


def show_when_rings_win() -> None:
    heads = [f"{degree} x {length // 1024}K" for degree in _DEGREES for length in _LENGTHS]
    print("| model, links |", " | ".join(heads), "|")
    print("|---" * (len(heads) + 1) + "|")
    for (model, num_heads, kv_heads), (num_nics, nics) in itertools.product(_MODELS, _NICS):
        profile = profile_of(num_heads, kv_heads, num_nics)
        cells = [
            ratio_text(profile, degree, length) for degree in _DEGREES for length in _LENGTHS
        ]
        print(f"| {model}, {nics} |", " | ".join(cells), "|")


def lengths_of(file: Path) -> list[int]:
    """Padded up to a multiple of 128, those over 191,872 dropped."""
    lengths = [int(line) for line in file.read_text().split()]
    return [-(-length // 128) * 128 for length in lengths if length <= 191_872]


def show_steps(files: Sequence[Path], *, time_limit_s: float) -> None:
    print("| model, links | batch | Ulysses | both | gain | gap of both |")
    print("|---|---|---|---|---|---|")
    for (model, num_heads, kv_heads), (num_nics, nics) in itertools.product(_MODELS, _NICS):
        both = profile_of(num_heads, kv_heads, num_nics)
        ulysses = replace(both, ring=None)
        for file in files:
            room = ulysses.degrees[-1] * ulysses.token_cap
            batch = [length for length in lengths_of(file)[:512] if length <= room]
            plans = [
                plan_step(
                    batch, profile=profile, num_ranks=_NUM_RANKS, clock=time.process_time,
                    time_limit_s=time_limit_s,
                )
                for profile in (ulysses, both)
            ]  # fmt: skip
            before_s, step_s = (plan.step_s for plan in plans)
            print(
                f"| {model}, {nics} | {file.stem} 0 | {before_s:.2f} s | {step_s:.2f} s "
                f"| {before_s / step_s - 1:.1%} | {plans[1].gap_fraction:.1%} |"
            )


def rank_sets(
    batches: Sequence[Sequence[int]], *, profile: StepProfile, reuse: bool
) -> Iterator[tuple[int, ...]]:
    """The different sets of two ranks and more that batch after batch needs."""
    made: dict[tuple[int, ...], None] = {}
    for batch in batches:
        plan = plan_step(
            batch, profile=profile, num_ranks=_NUM_RANKS, clock=time.process_time,
            existing=tuple(made) if reuse else (),
        )  # fmt: skip
        groups = (group for wave in plan.waves for group in wave.groups)
        made |= {group.ranks: None for group in groups if group.degree > 1}
    yield from made


def show_rank_sets(files: Sequence[Path], published: StepProfile) -> None:
    lengths = [length for file in files for length in lengths_of(file)]
    size = len(lengths) // _NUM_BATCHES
    batches = [lengths[at : at + size] for at in range(0, size * _NUM_BATCHES, size)]
    profiles = {"FlexSP's, powers of two": published} | {
        f"{model}, both kinds": profile_of(heads, kv_heads, 8)
        for model, heads, kv_heads in _MODELS
    }
    print(f"| profile | sets over {_NUM_BATCHES} batches | most of a GPU |")
    print("|---|---|---|")
    for name, profile in profiles.items():
        most = _NUM_RANKS * profile.token_cap
        fitting = [[length for length in batch if length <= most] for batch in batches]
        found = [
            list(rank_sets(fitting, profile=profile, reuse=reuse)) for reuse in (False, True)
        ]
        fresh, kept = (
            (len(sets), max(sum(rank in ranks for ranks in sets) for rank in range(_NUM_RANKS)))
            for sets in found
        )
        print(f"| {name} | {fresh[0]}, {kept[0]} with known ones | {fresh[1]}, {kept[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="sequence lengths, one a line")
    parser.add_argument("--time-limit", type=float, default=1.0, help="CPU seconds a plan")
    options = parser.parse_args()
    show_when_rings_win()
    print()
    show_steps(options.files, time_limit_s=options.time_limit)
    print()
    published = Path(__file__).parents[1] / "data" / "profiles" / "flexsp_7b_a100.json"
    show_rank_sets(options.files, profile_from_document(json.loads(published.read_text())))


if __name__ == "__main__":
    main()
