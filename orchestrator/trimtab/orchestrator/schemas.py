"""JSON Schema (draft 2020-12) of what `plan --json` and `plan-step --json` print.

`docs/schemas/` holds the same documents as files; a test keeps them equal. To write them anew:
`python -m trimtab.orchestrator.schemas docs/schemas`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from trimtab.core.cluster import PRECISIONS
from trimtab.core.plan import (
    FIT_VERDICTS,
    OFFLOADS,
    PIPELINE_SCHEDULES,
    PLAN_METHODS,
    RECOMPUTES,
)
from trimtab.core.serde import SCHEMA_VERSION

_Schema = dict[str, Any]

_COUNT: _Schema = {"type": "integer", "minimum": 1}
_INDEX: _Schema = {"type": "integer", "minimum": 0}
_AMOUNT: _Schema = {"type": "number", "minimum": 0}
_FRACTION: _Schema = {"type": "number", "minimum": 0, "maximum": 1}
_TEXT: _Schema = {"type": "string"}


def _object(properties: _Schema, *, description: str = "") -> _Schema:
    """An object that has all of `properties` and nothing else."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"description": description, **schema} if description else schema


def _list(items: _Schema, *, at_least: int = 0) -> _Schema:
    return {"type": "array", "items": items, "minItems": at_least}


def _described(schema: _Schema, description: str) -> _Schema:
    return {**schema, "description": description}


def _nullable(schema: _Schema, description: str) -> _Schema:
    return {"description": description, "anyOf": [schema, {"type": "null"}]}


_VERDICT: _Schema = {
    "enum": list(FIT_VERDICTS),
    "description": "`tight`: over 92 % of the capacity",
}

_LAYOUT = _object(
    {
        **dict.fromkeys(("tp", "pp", "dp", "cp", "ep", "vpp", "micro_batch_seqs"), _COUNT),
        "recompute": {"enum": list(RECOMPUTES)},
        "zero": {"type": "integer", "minimum": 0, "maximum": 3},
        "sequence_parallel": {"type": "boolean"},
        "fused_attention": {"type": "boolean"},
        "schedule": {"enum": list(PIPELINE_SCHEDULES)},
        "stage_layers": _described(_list(_COUNT), "layers by stage; empty: evenly"),
        "offload": {"enum": list(OFFLOADS)},
    },
    description="Degrees that stay fixed while the job runs; tp * pp * dp * cp = num_ranks",
)

_STAGE_MEMORY = _object(
    {
        "stage": _INDEX,
        **{
            f"{name}_bytes": _INDEX
            for name in (
                "weights",
                "gradients",
                "optimizer",
                "activations",
                "workspace",
                "capacity",
                "total",
            )
        },
        "verdict": _VERDICT,
    },
    description="Memory of the stage's fullest rank",
)

_FORECAST = _object(
    {
        "step_s": _described(_AMOUNT, "seconds of one step"),
        "parts": _described(
            _list(_object({"name": _TEXT, "seconds": _AMOUNT})), "they add up to step_s"
        ),
        "num_tokens": _described(_COUNT, "tokens of one step"),
        "model_flops": _described(_AMOUNT, "model FLOPs of one step; see mfu_note"),
        "memory": _list(_STAGE_MEMORY, at_least=1),
        "precision": {"enum": list(PRECISIONS)},
        "peak_flop_per_s": _nullable(_AMOUNT, "dense datasheet peak of one GPU, if known"),
        "num_ranks": _COUNT,
        "bubble_fraction": _FRACTION,
        "evidence": _described(_TEXT, "the rates, or the measured profile, behind the times"),
        "recomputed_flops": _described(_AMOUNT, "FLOPs of a step that are done twice"),
        "low_s": _nullable(_AMOUNT, "lower end of the 80 % interval of step_s, if known"),
        "high_s": _nullable(_AMOUNT, "its upper end"),
        "outside": _nullable(_TEXT, "why the job is unlike all that was calibrated on"),
        "tokens_per_s": _AMOUNT,
        "tokens_per_s_per_gpu": _AMOUNT,
        "mfu": _nullable(_AMOUNT, "model FLOPs / (step_s * num_ranks * peak_flop_per_s)"),
        "hfu": _nullable(_AMOUNT, "the same with recomputed FLOPs counted"),
        "mfu_note": _described(_TEXT, "how model FLOPs are counted, or why mfu is null"),
        "verdict": _VERDICT,
    }
)

_ISLANDS = _object(
    {
        "stages": _list(
            _object(
                {
                    "stage": _INDEX,
                    "num_layers": _COUNT,
                    "islands": _described(
                        _list(_TEXT, at_least=1), "several where its dp ranks are spread"
                    ),
                    "num_ranks": _COUNT,
                    "micro_batch_s": _described(_AMOUNT, "forward and backward"),
                }
            ),
            at_least=1,
        ),
        "lower_bound_s": _described(
            _AMOUNT, "no layout and no placement is shorter by the same forecast"
        ),
        "num_layouts": _described(_COUNT, "how many were looked at"),
        "baselines": _described(
            _list(
                _object(
                    {
                        "name": _TEXT,
                        "layout": _LAYOUT,
                        "step_s": _AMOUNT,
                        "is_tight": {"type": "boolean"},
                    }
                )
            ),
            "what simpler rules make of the same job",
        ),
        "gap": _described(_AMOUNT, "step_s / lower_bound_s - 1"),
    }
)

_COMMUNICATOR = _object(
    {
        "group": _TEXT,
        "ranks": _list(_INDEX, at_least=1),
        "transport": {"enum": ["IB", "Socket"]},
        "interface": _nullable(_TEXT, "of sockets; null: each node's own"),
        "reason": _TEXT,
    }
)

PLAN_SCHEMA: _Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "trimtab plan --json",
    **_object(
        {
            "schema": {"const": SCHEMA_VERSION},
            "job": _TEXT,
            "model": _object({"name": _TEXT, "num_parameters": _COUNT}),
            "cluster": _object({"name": _TEXT, "num_gpus": _COUNT}),
            "num_ranks": _COUNT,
            "batch": _object({"num_sequences": _COUNT, "note": _TEXT}),
            "layout": _LAYOUT,
            "placement": _object(
                {
                    "rank_nodes": _described(_list(_TEXT, at_least=1), "node of every rank"),
                    "stage_layers": _described(_list(_COUNT, at_least=1), "layers by stage"),
                    "rank_gpus": _described(_list(_INDEX), "GPU of its node, of every rank"),
                }
            ),
            "forecast": _FORECAST,
            "alternatives": _described(
                _list(_object({"layout": _LAYOUT, "forecast": _FORECAST})),
                "next best layouts, best first",
            ),
            "rejected": _list(_object({"layout": _LAYOUT, "reason": _TEXT})),
            "reason": _TEXT,
            "islands": _nullable(
                _ISLANDS, "of a cluster of several islands or kinds of GPUs; null: of one"
            ),
            "communicators": _described(
                _list(_COMMUNICATOR), "what each group of ranks is told about its network"
            ),
        },
        description="Times in seconds, sizes in bytes.",
    ),
}

_GROUP = _object(
    {
        "degree": _described(_COUNT, "number of ranks"),
        "ranks": _described(
            {**_list(_INDEX, at_least=1), "uniqueItems": True}, "ascending, 0 to num_gpus - 1"
        ),
        "sequences": _described(
            {**_list(_INDEX, at_least=1), "uniqueItems": True},
            "0-based line numbers of the lengths file, in packing order",
        ),
        "tokens": _described(_COUNT, "at most degree * token_cap"),
        "time_ms": _AMOUNT,
    }
)

_SPLIT = _object(
    {
        "longer_than_s": _AMOUNT,
        "at_most": _nullable(_INDEX, "no more waves than this take longer"),
        "at_least": _nullable(_INDEX, "no fewer waves than this take longer"),
    }
)

_GROUP_PRICE = _object(
    {
        "wave_class": _described(_INDEX, "which of the classes between edges_s"),
        "degree": _COUNT,
        "token_s": _described(_AMOUNT, "seconds a token"),
        "work": _described(_AMOUNT, "seconds a rank-second of work"),
        "big_tokens_s": _described(_AMOUNT, "for a sequence of over half a group's tokens"),
        "big_work_s": _described(_AMOUNT, "for one of over half a group's work"),
    }
)

_CERTIFICATE = _object(
    {
        "schema": {"const": SCHEMA_VERSION},
        "type": {"const": "BoundCertificate"},
        "leaves": _described(
            _list(
                _object(
                    {
                        "splits": _list(_SPLIT),
                        "edges_s": _described(
                            _list(_AMOUNT, at_least=2),
                            "class k has the waves of edges_s[k] < time <= edges_s[k + 1], "
                            "fixed time left out",
                        ),
                        "wave_prices_s": _described(
                            _list({"type": "number"}, at_least=1),
                            "seconds that a wave longer than edges_s[k] is worth: the price of "
                            "its fixed time",
                        ),
                        "group_prices": _described(
                            _list(_GROUP_PRICE), "those left out are zero"
                        ),
                    }
                ),
                at_least=1,
            ),
            "prices for plans that keep all splits of the leaf; the bound is the least of all",
        ),
        "shorter_than_s": _described(
            _AMOUNT, "the plans spoken of take less, step_fixed_ms left out"
        ),
        "bucket_edges": _described(
            _list(_INDEX), "shortest length of each bucket that the prices were found with"
        ),
    }
)

PLAN_STEP_SCHEMA: _Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "trimtab plan-step --json",
    **_object(
        {
            "schema": {"const": SCHEMA_VERSION},
            "waves": _described(
                _list(
                    _object(
                        {
                            "time_ms": _described(_AMOUNT, "of the slowest group"),
                            "groups": _list(_GROUP, at_least=1),
                        }
                    ),
                    at_least=1,
                ),
                "they run one after the other; the groups of a wave at once, no rank in two",
            ),
            "step_ms": _described(_AMOUNT, "sum of the waves' time_ms, and step_fixed_ms"),
            "step_fixed_ms": _described(_AMOUNT, "time of a step outside its waves"),
            "lower_bound_ms": _described(_AMOUNT, "no plan under the same costs is shorter"),
            "gap": _described(_AMOUNT, "(step_ms - lower_bound_ms) / lower_bound_ms"),
            "solve_s": _described(
                _AMOUNT, "wall seconds of planning after imports and compilation"
            ),
            "first_plan_s": _described(_AMOUNT, "wall seconds until the first plan"),
            "first_step_ms": _described(_AMOUNT, "step_ms of the first plan"),
            "method": {"enum": list(PLAN_METHODS)},
            "reason": _TEXT,
            "uniform": _nullable(
                _object({"degree": _COUNT, "step_ms": _AMOUNT}),
                "the best plan with one degree for the whole step; null if none is possible",
            ),
            "num_gpus": _COUNT,
            "num_sequences": _COUNT,
            "num_tokens": _COUNT,
            "profile": _TEXT,
            "token_cap": _described(_COUNT, "most tokens one rank holds in a wave"),
            "certificate": _nullable(
                _CERTIFICATE, "why nothing is shorter; null: the area bound says so"
            ),
        },
        description="Times in milliseconds, those whose name ends in _s in seconds.",
    ),
}

SCHEMAS = {"plan": PLAN_SCHEMA, "plan-step": PLAN_STEP_SCHEMA}


def write_schemas(folder: Path) -> None:
    """Write every schema to `folder` as `NAME.schema.json`."""
    for name, schema in SCHEMAS.items():
        (folder / f"{name}.schema.json").write_text(schema_text(schema), encoding="utf-8")


def schema_text(schema: _Schema) -> str:
    """A schema as its file reads."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
