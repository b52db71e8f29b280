"""What comes in through the door to megatron-core, in a process of its own."""

import os
import subprocess
import sys


def test_megatron_brings_no_compiler_and_no_wandb_and_leaves_both_usable() -> None:
    program = (
        "import sys, torch; compile = torch.compile\n"
        "from trimtab.launch.runtime import megatron\n"
        "unwanted = ('torch._inductor', 'torch._dynamo', 'wandb')\n"
        "print([name for name in unwanted if name in sys.modules])\n"
        "print(torch.compile is compile)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\nTrue\n"
