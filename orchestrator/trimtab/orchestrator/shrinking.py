"""A job on fewer nodes than it asked for: a smaller layout, planned anew."""

from dataclasses import replace

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.job import JobSpec, Request
from trimtab.core.plan import Layout


def smaller_request(request: Request, *, num_nodes: int) -> Request | None:
    """`request` for `num_nodes` nodes, as many ranks on each as before.

    Batches do not depend on the number of ranks, so training goes on as it was, more slowly.

    Returns:
        None where the model or its longest sequence does not fit so few ranks, or where the
        ranks run a script, which may not know how to go on with fewer.
    """
    from trimtab.orchestrator import api
    from trimtab.orchestrator.preflight import check_inputs

    job = request.job
    if not isinstance(job, JobSpec) or request.layout is None:
        return None
    num_ranks = num_nodes * request.ranks_per_node
    layout = replace(request.layout, dp=1)
    if num_ranks % layout.num_ranks:
        return None
    layout = replace(layout, dp=num_ranks // layout.num_ranks)
    small = replace(job, num_ranks=num_ranks, num_nodes=num_nodes, layout=_given(job, layout))
    try:
        lengths = check_inputs(small, layout)
        api.plan_run(small, layout, lengths=lengths.typical_batch if lengths else None)
    except (InfeasibleError, InputError):
        return None
    return replace(request, job=small, layout=layout, num_ranks=num_ranks, num_nodes=num_nodes)


def _given(job: JobSpec, layout: Layout) -> Layout | None:
    """The job's own layout, if it had one, at its new size."""
    return None if job.layout is None else layout
