"""The connection of a controller to the Ray cluster it is a driver of.

All that is asked of Ray's own package goes through here or through `actors.py`.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from trimtab.core.errors import InputError, MissingExtraError
from trimtab.launch.ray.cluster_nodes import ClusterNode, live_nodes

NODE_ID_LABEL: Final = "ray.io/node-id"
"""Ray gives every node this label (2.49 and newer)."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class RayConnection:
    """This process as a driver; connected when it is made.

    Raises:
        InputError: No Ray runs here.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(
                "ray: not installed on the cluster's head node; pip install 'trimtab[ray]'"
            ) from error
        self._ray = ray
        if not ray.is_initialized():
            self._connect()
        self._context = ray.get_runtime_context()

    @property
    def own_node_id(self) -> str:
        return str(self._context.get_node_id())

    @property
    def own_address(self) -> str:
        return str(self._ray.util.get_node_ip_address())

    def live_nodes(self) -> tuple[ClusterNode, ...]:
        """The nodes that the cluster believes alive; it needs seconds to see one die."""
        return live_nodes(self._ray.nodes())

    def available(self) -> Mapping[str, Mapping[str, float]]:
        """What nobody uses at this moment, by node id."""
        from ray._private.state import available_resources_per_node

        found: Mapping[str, Mapping[str, float]] = available_resources_per_node()
        return found

    def place(
        self, nodes: Sequence[ClusterNode], demand: Mapping[str, float], *, wait_s: float
    ) -> Any | None:
        """A placement group with one bundle on each of `nodes`, in their order.

        Every bundle is bound to its node, so that Ray never moves one to a node that the
        controller does not know of, or has excluded.

        Returns:
            None where the nodes cannot give that within `wait_s`.
        """
        from ray.util.placement_group import placement_group

        group = placement_group(
            [dict(demand) for _ in nodes],
            strategy="STRICT_SPREAD",
            bundle_label_selector=[{NODE_ID_LABEL: node.node_id} for node in nodes],
        )
        if group.wait(wait_s):
            return group
        self.remove(group)
        return None

    def remove(self, group: Any) -> None:
        """Give the nodes of a placement group back; what runs in it is killed by Ray."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(group)

    def _connect(self) -> None:
        with _own_signal_handlers():
            try:
                self._ray.init(
                    address="auto",
                    log_to_driver=False,
                    configure_logging=False,
                    logging_level="ERROR",
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                words = str(error).splitlines()[:1]
                raise InputError(
                    f"ray: expected to run as the entrypoint of a Ray job, but no cluster "
                    f"answers here ({''.join(words)}); use `trimtab submit -s ray`"
                ) from error


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep this process's signal handlers: Ray puts its own in their place, which exit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
