"""What the scheduler needs of the processes that workers live in: Ray's actors or local processes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from cnnbatch.cluster.nodes import Node, Share

Value = TypeVar("Value")
Answer = TypeVar("Answer")

Call = Hashable
"""A question to a worker that is under way."""

Handle = Any
"""A worker's process, as the pool knows it."""


class WorkerEnded(Exception):
    """A worker's process is gone; ``str`` of it says in a sentence how."""


class WorkerPool(Protocol):
    """Starts `WorkerProcess`es on nodes and carries questions to them; it decides nothing."""

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive; raises as `require_alive`."""

    def may_grow(self) -> bool:
        """Say whether nodes may come that are not there yet."""

    def is_alive(self) -> bool:
        """Say whether workers can be reached at all."""

    def require_alive(self) -> None:
        """Raise EnvironmentFault where no worker can be reached any more."""

    def start(self, node: str, share: Share) -> Handle:
        """Start a worker on a node, on any where it is ``""``; it may have to wait for room."""

    def node_of(self, handle: Handle) -> str:
        """Return the id of the node that a worker is on; raises WorkerEnded."""

    def ask(self, handle: Handle, method: str, *values: Any) -> Call:
        """Call a method of a worker, whose answer is `answer`'s to give."""

    def tell(self, handle: Handle, method: str, *values: Any) -> None:
        """Call a method of a worker, of whose answer nothing is heard."""

    def wait(self, calls: Iterable[Call], timeout_s: float) -> Sequence[Call]:
        """Return all calls that are answered; wait for the first of them no longer than ``timeout_s``."""

    def answer(self, call: Call) -> Any:
        """Return what a call that is answered gave; raises WorkerEnded."""

    def kill(self, handle: Handle) -> None:
        """End a worker's process at once."""

    def call_on(
        self, nodes: Sequence[str], function: Callable[[Value], Answer], value: Value
    ) -> Mapping[str, Answer]:
        """Call a function once on each node, outside its workers; a node that is lost gives no answer."""
