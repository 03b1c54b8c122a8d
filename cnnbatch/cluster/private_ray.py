"""A Ray for one program on one machine: of Ray's processes only those without which no worker runs.

`ray.init` starts five others beside: it waits for the dashboard's, also where ``include_dashboard`` is False,
and `ray.shutdown` waits for each of them to end. There is no option against them; Ray's own tests and its
command line start nodes by the class from which this one is derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray._private import node


@contextmanager
def starting(environment: Mapping[str, str]) -> Iterator[None]:
    """Have `ray.init` start such a Ray in the block; its workers inherit the variables of ``environment``."""

    class Node(_Node):
        def start_raylet(self, *places: Any, **options: Any) -> None:
            self._ray_params.env_vars = {**(self._ray_params.env_vars or {}), **environment}
            super().start_raylet(*places, **options)

    module: Any = node
    module.Node = Node
    try:
        yield
    finally:
        module.Node = _RAYS


_RAYS = node.Node


class _Node(_RAYS):
    """The head node, and the only one; methods as in Ray 2.60 (`ray._private.node`)."""

    def start_api_server(self, **_: Any) -> None:
        """Start no dashboard: nobody looks at it."""

    def start_monitor(self) -> None:
        """Start no autoscaler: no node will come."""

    def start_log_monitor(self) -> None:
        """Have nobody read what workers print: it isn't shown."""
