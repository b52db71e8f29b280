"""`trimtab plan-step --cluster --job`: groups, replicas and stage paths of one step."""

from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.orchestrator.cli.output import console, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from trimtab.orchestrator.joint_planning import JointPlan

_COLUMNS = 40
"""Of a drawn step."""
_LEVELS = " ▁▂▃▄▅▆▇█"


def plan_joint(
    cluster: Path,
    job_file: Path,
    *,
    lengths: Path,
    start: int,
    end: int | None,
    time_limit_s: float,
    json: bool,
) -> None:
    """Plan a step of a job on another cluster than its own, and print it.

    Raises:
        InputError: A file is wrong, or the job cannot be planned so.
        InfeasibleError: Something does not fit.
    """
    from trimtab.orchestrator import api, plan_json
    from trimtab.orchestrator.joint_planning import plan_joint_step

    job = api.load_job(job_file, [f"cluster={_quoted(cluster)}", "num_ranks=null"])
    documents = api.load_lengths(lengths, start=start, end=end)
    batch = api.as_sequences(documents, data=job.data)
    if not batch:
        raise InputError(
            f"{lengths}: expected at least one document of at most data.max_seq_tokens = "
            f"{job.data.max_seq_tokens} tokens, got none; raise it, or set data.long_documents"
        )
    try:
        with console(stderr=True).status("choosing a layout and planning the step"):
            joint = plan_joint_step(job, batch, time_limit_s=time_limit_s)
    except InfeasibleError as error:
        raise InfeasibleError(f"{cluster}: {error}") from error
    if json:
        print_json(plan_json.joint_plan_document(joint, lengths=batch))
        return
    _show(console(), joint, lengths=batch)


def _quoted(path: Path) -> str:
    """A path as a YAML text, whatever is in it."""
    return "'" + str(path).replace("'", "''") + "'"


def _show(out: "Console", joint: "JointPlan", *, lengths: "Sequence[int]") -> None:
    from rich.markup import escape

    from trimtab.core.units import counted, duration_text

    plan, staged = joint.plan, joint.staged
    out.print(
        f"[bold]{counted(len(lengths), 'sequence')}[/bold], {sum(lengths):,} tokens, longest "
        f"{max(lengths):,}, over {counted(staged.num_stages, 'stage')} on "
        f"{counted(staged.num_ranks, 'rank')} (simulated)"
    )
    out.print(
        f"[bold]step {duration_text(plan.step_s)}[/bold], at most {plan.gap_fraction:.1%} over "
        f"the best possible on this layout (bound {duration_text(plan.lower_bound_s)}); "
        f"{len(plan.micro_batches)} micro-batches; {plan.method}, solved in "
        f"{duration_text(plan.solve_s)}, layout in {duration_text(joint.layout_s)}"
    )
    out.print(
        f"first plan after {duration_text(plan.first_plan_s)}: step "
        f"{duration_text(plan.first_step_s)}, {plan.first_step_s / plan.step_s - 1:.1%} longer"
    )
    if joint.apart_s is not None:
        more = ", leaving out no stage" if any(staged.skip_fractions) else ""
        out.print(
            f"groups, placement and paths decided apart{more}: "
            f"step {duration_text(joint.apart_s)}, "
            f"{joint.apart_s / plan.step_s:.2f} times as long"
        )
    out.print()
    for v, replica in enumerate(staged.replicas):
        out.print(
            f"stage {replica.stage}  {staged.stage_layers[replica.stage]:>3} layers  "
            f"{escape(replica.node)} x{replica.num_nodes}, {replica.num_ranks} ranks  "
            f"[cyan]{_busy(joint, v, lengths=lengths)}[/cyan]"
        )
    out.print(
        f"a column is {duration_text(plan.step_s / _COLUMNS)}: how many of the ranks are busy; "
        "at the end, gradients and optimizer",
        style="dim",
    )


def _busy(joint: "JointPlan", replica: int, *, lengths: "Sequence[int]") -> str:
    """One character for each part of the step: the share of the replica's ranks at work."""
    from trimtab.planners.staged.staged_schedule import Tables, pass_s

    tables = Tables(joint.staged)
    width_s = joint.plan.step_s / _COLUMNS
    busy = [0.0] * _COLUMNS
    share = joint.staged.forward_fraction
    for one in joint.plan.micro_batches:
        members = [lengths[index] for index in one.sequences]
        for visit in one.visits:
            if visit.replica != replica:
                continue
            whole_s = pass_s(members, one.degree, replica=replica, tables=tables)
            for start_s, long_s in (
                (visit.forward_start_s, share * whole_s),
                (visit.backward_start_s, (1 - share) * whole_s),
            ):
                first = int(start_s / width_s)
                last = min(_COLUMNS - 1, int((start_s + long_s) / width_s))
                for column in range(first, last + 1):
                    end_s = min(start_s + long_s, (column + 1) * width_s)
                    busy[column] += one.degree * (end_s - max(start_s, column * width_s))
    room = joint.staged.replicas[replica].num_ranks * width_s
    return "".join(_LEVELS[min(8, round(8 * time / room))] for time in busy)
