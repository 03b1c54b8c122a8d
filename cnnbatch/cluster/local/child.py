"""What a process on this machine does: it builds one object, and answers calls of its methods."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NoReturn

THREADS = 4
"""Calls at a time, where the object's class has no ``THREADS`` of its own."""
HEARTBEAT = "beat"
"""The method that is answered at once, however many calls are under way."""


def serve(descriptor: int) -> None:
    """Build an object and answer calls of its methods until the driver is gone.

    First comes (class, arguments), then requests (number, method, arguments), as pickles; answers are
    (number, where an error was raised, value or error), and there is none to a request without a number. Only
    the driver that started this process has the other end.
    """
    connection = Connection(descriptor)
    kind, values = _receive(connection)
    _Served(connection, kind(*values)).serve()


def _receive(connection: Connection) -> Any:
    """Return what comes next; ends this process where the driver is gone, whatever is under way."""
    try:
        data = connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)
    return pickle.loads(data)


class _Served:
    """The object, with the connection that its answers go over."""

    def __init__(self, connection: Connection, served: Any) -> None:
        self._connection = connection
        self._object = served
        self._sending = threading.Lock()

    def serve(self) -> NoReturn:
        threads = ThreadPoolExecutor(getattr(self._object, "THREADS", THREADS), "call")
        while True:
            number, method, values = _receive(self._connection)
            if method == HEARTBEAT:
                self._answer(number, method, values)
            else:
                threads.submit(self._answer, number, method, values)

    def _answer(self, number: int | None, method: str, values: Sequence[Any]) -> None:
        try:
            data = pickle.dumps((number, None, getattr(self._object, method)(*values)))
        except BaseException as error:  # It is raised in the driver.
            data = pickle.dumps((number, "".join(traceback.format_exception(error)), _portable(error)))
        if number is None:
            return
        with self._sending:
            self._connection.send_bytes(data)


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent: what can't comes in its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
