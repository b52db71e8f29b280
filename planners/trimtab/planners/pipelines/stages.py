"""What each pipeline stage takes and holds of a wave, from a profile of the whole model.

A profile's coefficients are those of all layers. Stage s has the share l_s / L of them, and so
the same share of attention, exchange and fixed time; of the time per token it has
(l_s + o) / (L + o), where o is `Pipeline.output_layers` on the last stage and 0 elsewhere. The
embedding is a look-up and counts as nothing. A wave takes a stage as long as its slowest group
does there; groups keep their degree, their attention kind and their ranks' positions from stage
to stage, so that the same kind is the cheaper one everywhere.
"""

import dataclasses
import math
from collections.abc import Sequence

from trimtab.core.errors import InputError
from trimtab.core.pipeline import MicroBatchTimes, Pipeline
from trimtab.core.plan import Wave
from trimtab.core.profile import DegreeBandwidth, RingCosts, StepProfile
from trimtab.planners.placement import stage_layers
from trimtab.planners.steps.packing import OpenGroup
from trimtab.planners.steps.rank_blocks import placed_seconds
from trimtab.planners.timeline import most_held

FORWARD_FRACTION = 1 / 3
"""Share of the forward pass. Source: arXiv:2104.04473, section 2.2: backward takes twice as
long."""

_ACTIVATION_BYTES = 2


class StageCosts:
    """A profile, split over the stages of a pipeline.

    Attributes:
        stages: The pipeline, with the layers of every stage.
        layer_shares: Share of the layers, by stage.
        linear_shares: Share of the time per token, by stage.
        limits: Tokens a rank of each stage holds, its micro-batches in flight together. A stage
            keeps its own layers only: token_cap L / l_s.
        even_cap: Tokens a rank may hold of each wave, where all waves hold as many.
        wave_cap: Tokens a rank may hold of one wave, at most.
        wave_profile: What groups cost over all stages, with `wave_cap` as the token cap.
        send_s_per_token: From a stage to the next.
    """

    def __init__(self, profile: StepProfile, pipeline: Pipeline) -> None:
        layers = _layers(profile, pipeline)
        total = sum(layers)
        outputs = [0.0] * (pipeline.pp - 1) + [pipeline.output_layers]
        self.profile = profile
        self.stages = dataclasses.replace(pipeline, stage_layers=layers)
        self.layer_shares = tuple(own / total for own in layers)
        self.linear_shares = tuple(
            (own + output) / (total + pipeline.output_layers)
            for own, output in zip(layers, outputs, strict=True)
        )
        self.limits = tuple(profile.token_cap * total / own for own in layers)
        self.even_cap = max(1, min(self._even_caps()))
        self.wave_cap = self.even_cap if pipeline.vpp > 1 else math.floor(min(self.limits))
        self.wave_profile = dataclasses.replace(
            profile, token_cap=self.wave_cap, step_fixed_s=0.0
        )
        self.send_s_per_token = 0.0
        if pipeline.send_bytes_per_s is not None:
            if not profile.hidden:
                raise InputError(
                    f"profile.hidden: needed to count what stages send, but {profile.name!r} "
                    "has none; add it, or leave the rate between stages out"
                )
            token_bytes = _ACTIVATION_BYTES * profile.hidden
            self.send_s_per_token = token_bytes / pipeline.send_bytes_per_s

    def _even_caps(self) -> list[int]:
        pp, vpp = self.stages.pp, self.stages.vpp
        return [
            math.floor(limit / most_held("1f1b", pp=pp, stage=stage, vpp=vpp) + 1e-9)
            for stage, limit in enumerate(self.limits)
        ]

    def stage_profile(self, stage: int, *, token_cap: int) -> StepProfile:
        """What groups cost in one stage; a wave holds `token_cap` tokens a rank at most."""
        share, profile = self.layer_shares[stage], self.profile
        return dataclasses.replace(
            profile,
            quadratic_s=share * profile.quadratic_s,
            linear_s=self.linear_shares[stage] * profile.linear_s,
            fixed_s=share * profile.fixed_s,
            alltoall_bytes_per_token=share * profile.alltoall_bytes_per_token,
            bandwidths=_with_share(profile.bandwidths, share),
            token_cap=token_cap,
            step_fixed_s=0.0,
            ring=_ring_share(profile.ring, share),
        )

    def times(self, groups: Sequence[OpenGroup]) -> MicroBatchTimes:
        """What a wave takes in every stage where its groups lie as well as they can."""
        return self._times(
            [self.profile.fixed_s + group.seconds for group in groups],
            [group.tokens / group.degree for group in groups],
        )

    def placed_times(self, wave: Wave, lengths: Sequence[int]) -> MicroBatchTimes:
        """What a wave takes in every stage where its groups lie."""
        return self._times(
            placed_seconds(wave, lengths, profile=self.profile),
            [
                sum(lengths[index] for index in group.sequences) / group.degree
                for group in wave.groups
            ],
        )

    def _times(self, seconds: Sequence[float], rank_tokens: Sequence[float]) -> MicroBatchTimes:
        """Of groups that take `seconds` over all stages, with the tokens of a rank of each."""
        by_token = [self.profile.linear_s * tokens for tokens in rank_tokens]
        others = [own - linear for own, linear in zip(seconds, by_token, strict=True)]
        stage_s = [
            max(
                layer_share * other + linear_share * linear
                for other, linear in zip(others, by_token, strict=True)
            )
            for layer_share, linear_share in zip(
                self.layer_shares, self.linear_shares, strict=True
            )
        ]
        tokens = max(rank_tokens)
        return MicroBatchTimes(
            forward_s=tuple(FORWARD_FRACTION * seconds for seconds in stage_s),
            backward_s=tuple((1 - FORWARD_FRACTION) * seconds for seconds in stage_s),
            send_s=self.send_s_per_token * tokens,
            tokens=tokens,
        )


def _with_share(
    bandwidths: Sequence[DegreeBandwidth], share: float
) -> tuple[DegreeBandwidth, ...]:
    """With the latencies of a share of the layers."""
    return tuple(
        dataclasses.replace(entry, latency_s=share * entry.latency_s) for entry in bandwidths
    )


def _ring_share(ring: RingCosts | None, share: float) -> RingCosts | None:
    """What a ring costs in a share of the layers."""
    if ring is None:
        return None
    return dataclasses.replace(
        ring,
        quadratic_s=share * ring.quadratic_s,
        bytes_per_token=share * ring.bytes_per_token,
        bandwidths=_with_share(ring.bandwidths, share),
    )


def _layers(profile: StepProfile, pipeline: Pipeline) -> tuple[int, ...]:
    """Layers of every stage; a profile that knows no number of layers has equal stages."""
    pp, vpp, num_layers = pipeline.pp, pipeline.vpp, profile.num_layers
    given = pipeline.stage_layers
    if given and num_layers and sum(given) != num_layers:
        raise InputError(
            f"pipeline.stage_layers: expected {num_layers} layers in all, as the profile "
            f"{profile.name!r} has, got {sum(given)}"
        )
    if num_layers and pp > num_layers:
        raise InputError(
            f"pipeline.pp: {pp} stages are more than the {num_layers} layers of the profile "
            f"{profile.name!r}"
        )
    if num_layers and vpp > 1 and num_layers % (pp * vpp):
        raise InputError(
            f"pipeline.vpp: pp x vpp = {pp * vpp} does not divide the {num_layers} layers of "
            f"the profile {profile.name!r}"
        )
    return given or stage_layers(num_layers or pp * vpp, pp)
