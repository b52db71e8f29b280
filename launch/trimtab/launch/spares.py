"""The warm spares of a node: started while its ranks train, used when they start again."""

import subprocess
from collections.abc import Mapping, Sequence

from trimtab.launch.processes import RankOrder
from trimtab.launch.warm import Spare


class SparePool:
    """Processes that wait to become ranks; all of one command line.

    Args:
        held_fds: Locks that they hold as ranks do.
    """

    def __init__(self, held_fds: Sequence[int]) -> None:
        self._held_fds = held_fds
        self._argv: tuple[str, ...] = ()
        self._spares: list[Spare] = []

    def keep(
        self, num_spares: int, *, argv: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        """Have at least this many; those that have ended are replaced.

        Raises:
            OSError: One could not be started.
        """
        if argv != self._argv:
            self.end()
            self._argv = argv
        self._spares = [spare for spare in self._spares if spare.lives]
        while len(self._spares) < num_spares:
            spare = Spare(argv, environment=environment, held_fds=self._held_fds)
            self._spares.append(spare)

    def take(self, order: RankOrder) -> "subprocess.Popen[bytes] | None":
        """Have a spare carry out `order`; None: there is none that can."""
        while self._spares and order.argv == self._argv:
            if process := self._spares.pop(0).hand_over(order):
                return process
        return None

    def end(self) -> None:
        """End them all at once."""
        while self._spares:
            self._spares.pop().end()
