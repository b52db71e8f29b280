"""A run's newest checkpoint as a Hugging Face folder."""

import os
import tempfile
from pathlib import Path

import torch.distributed as dist

from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout
from trimtab.launch.runtime.checkpoint import LoadedCheckpoint, checkpoints_of
from trimtab.launch.runtime.clock import StepClock
from trimtab.launch.runtime.engine_megatron import MegatronEngine
from trimtab.launch.runtime.huggingface import export_hugging_face


def export_newest(job: JobSpec, checkpoints: Path, folder: Path) -> LoadedCheckpoint:
    """Write the weights of the newest whole checkpoint to `folder`; tells which it was.

    Runs in this process alone, whatever the number of ranks that wrote the checkpoint.

    Args:
        job: The job that wrote it.
        checkpoints: The run's folder of checkpoints.
        folder: Where to write; must not exist, or be empty.

    Raises:
        InputError: There is no whole checkpoint, the folder is not empty, or the model is of a
            kind that Hugging Face's Llama does not cover.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as meeting:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}/rendezvous", rank=0, world_size=1
        )
        try:
            engine = MegatronEngine(
                job.model, Layout(), training=job.training, clock=StepClock()
            )
            found = checkpoints_of(job, checkpoints.parent, first_on_node=0)
            loaded = found.load_latest(engine)
            if loaded.path is None:
                raise InputError(f"{checkpoints}: there is no checkpoint to export")
            export_hugging_face(engine.module, job.model, folder, tokenizer=job.data.tokenizer)
        finally:
            dist.destroy_process_group()
    return loaded
