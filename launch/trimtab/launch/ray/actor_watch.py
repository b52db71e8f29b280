"""Whether the actor that keeps this node for the job still lives.

Ray's own view of a killed raylet is some seconds old, and the raylet takes its actors along
within a second. An agent is their child, but not tied to them: it sees that they are gone while
the ranks still live and can write a checkpoint.
"""

import os
from typing import Final, Self

ACTOR_VARIABLE: Final = "TRIMTAB_ACTOR_PID"
"""Set for an agent that an actor starts."""


class ActorWatch:
    """Looks at this process's parent."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @classmethod
    def of_this_process(cls) -> Self | None:
        """None where no actor has started this process."""
        pid = os.environ.get(ACTOR_VARIABLE)
        return None if pid is None else cls(int(pid))

    def failure(self) -> str | None:
        """Why the node is about to be lost, or None while the actor lives."""
        if os.getppid() == self._pid:
            return None
        return f"the Ray actor that kept the node for the job (pid {self._pid}) has died"
