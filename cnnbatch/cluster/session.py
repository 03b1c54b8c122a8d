"""This process's connection to Ray: made within seconds or not at all, watched while it lasts, and ended.

Where Ray's own processes die, Ray's client waits for ever, or ends this process by itself after a minute
(`gcs_rpc_server_reconnect_timeout_s`). So a thread looks after them, and says first what happened.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import RayError

from cnnbatch.cluster import private_ray
from cnnbatch.cluster.address import chosen, cluster_address
from cnnbatch.cluster.nodes import Node, alive_nodes, bounds, describe, require_cores
from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault
from cnnbatch.terminal import interrupts

LOCAL_OBJECT_STORE_BYTES = 128 * 2**20
START_S = 60.0
JOIN_S = 30.0
SILENT_S = 40.0
"""How long Ray's head may leave a question unanswered: less than the 60 s after which Ray ends a driver."""
ASK_AGAIN_S = 5.0
UNWIND_S = 8.0
"""How long the main thread may take to end after Ray broke; it may wait inside Ray for ever."""
CLOSE_S = 8.0
_GOES_ON = "give the same command again: what is finished is kept"
_AT_START = (
    "look at this machine's limits and room (ulimit -n, memory, /dev/shm, the temporary folder); "
    "compute.pool=local predicts on this machine without Ray, a training needs compute.pool=inline"
)


def connect(
    compute: Compute,
    note: Callable[[str], object] = lambda _: None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Join the Ray cluster that is there, or start one on this machine with room for the job's workers.

    ``note`` is told which. The workers of a Ray that is started have the variables of ``environment``; see
    `environment`. Raises UserError for a RAY_ADDRESS that is none, EnvironmentFault where no Ray can be had.
    """
    if ray.is_initialized():
        if _now is None or not _now.is_current():
            _begin(Session(starts=False))
        return
    if _now is not None and not close():
        raise EnvironmentFault("the Ray that this process used has broken", "start Python again")
    address = cluster_address() or "local"
    if address == "local":
        require_cores(compute, os.cpu_count() or 1)
    starts = address == "local"
    session = Session(starts, environment if starts else {})
    _begin(session)
    session.start(address, compute)
    note(session.describe(address))


def nodes() -> list[Node]:
    """Return the nodes that are alive; raises EnvironmentFault where Ray has broken."""
    require_alive()
    return alive_nodes(ray.nodes())  # type: ignore[no-untyped-call]  # Ray's own lack


def require_alive() -> None:
    """Raise EnvironmentFault where Ray has broken."""
    if _now is not None and _now.fault is not None:
        raise _now.fault


def is_alive() -> bool:
    """Say whether Ray can be asked anything."""
    return _now is None or _now.fault is None


def is_connected() -> bool:
    """Say whether this process uses a Ray already."""
    return bool(ray.is_initialized())


def is_own() -> bool:
    """Say whether this process started the Ray that it uses, so that no node will come."""
    return _now is not None and _now.starts


def environment() -> Mapping[str, str]:
    """Return the variables that `connect` gave to every worker: none of a Ray that another one started."""
    return {} if _now is None else _now.environment


@contextmanager
def faults(but: type[RayError] | tuple[()] = ()) -> Iterator[None]:
    """Raise as EnvironmentFault what Ray itself raises in the block, ``but`` one kind."""
    try:
        yield
    except but:
        raise
    except RayError as error:
        require_alive()
        raise EnvironmentFault(f"Ray failed: {first_sentence(error)}", _GOES_ON) from None
    except Exception:
        require_alive()
        raise


def first_sentence(error: BaseException) -> str:
    """Return what an error of Ray's says first: after that it guesses at causes."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0] if lines else type(error).__name__


def work_in(folder: str) -> None:
    """Have relative paths mean in a worker what they mean to the driver, whose current folder is ``folder``.

    Ray Train and Ray Tune put workers into folders of their own, and those of a cluster begin where it was
    started. On a machine without this folder a worker stays where it is.
    """
    with suppress(OSError):
        os.chdir(folder)


def close() -> bool:
    """End the connection and the Ray that this process started; say whether Ray let go in time."""
    global _now
    session, _now = _now, None
    return session is None or session.close()


class Session:
    """One connection to Ray; ``starts`` says whether the Ray is this process's own.

    ``environment`` are the variables that its workers have from the start.

    Its thread starts Ray, and lives as long: Linux ends Ray's processes together with the thread that
    started them (PR_SET_PDEATHSIG).
    """

    def __init__(self, starts: bool, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.fault: EnvironmentFault | None = None
        self.starts, self.environment = starts, environment
        self._before = set(psutil.Process().children()) if starts else set()
        self._vital: dict[psutil.Process, str] = {}
        self._family: set[psutil.Process] = set()
        self._node: Any = None
        self._asked_since: float | None = None
        self._answered = time.monotonic()
        self._failed: BaseException | None = None
        self._up, self._over = threading.Event(), threading.Event()

    def start(self, address: str, compute: Compute) -> None:
        """Start Ray or join it, within `START_S` or `JOIN_S`; raises EnvironmentFault."""
        with _own_signals():
            self._run(lambda: self._init(address, compute))
            self._wait_for_start()

    def _wait_for_start(self) -> None:
        deadline = time.monotonic() + (START_S if self.starts else JOIN_S)
        while not self._up.wait(0.2):
            self._note_processes()
            if ended := self._ended():
                raise self._cannot_start(f"its {ended} ended")
            if time.monotonic() > deadline:
                raise self._cannot_start("no answer")
        if self._failed is not None:
            raise self._cannot_start(version_words(str(self._failed)) or first_sentence(self._failed))

    def watch(self) -> None:
        """Look after a Ray that this process uses already."""
        self._run(lambda: None)
        self._up.wait(JOIN_S)

    def is_current(self) -> bool:
        """Say whether this process still uses this Ray."""
        return self._node is ray._private.worker._global_node

    def describe(self, address: str) -> str:
        """Return in a line which Ray this is."""
        if self.starts:
            return "started Ray on this machine"
        return f"joined the Ray cluster at {address}: {describe(nodes())}"

    def kill(self) -> None:
        """End the processes of a Ray that this process started, and their workers."""
        self._over.set()
        self._note_processes()
        for process in self._family:
            with suppress(psutil.Error):
                process.kill()

    def close(self) -> bool:
        """Disconnect, and end the Ray that this process started; say whether Ray let go in time."""
        closing = threading.Thread(target=_shut_down, name="ray-close", daemon=True)
        if self.is_current() and self._up.is_set():
            closing.start()
            closing.join(CLOSE_S)
        let_go = self._up.is_set() and not closing.is_alive()
        self.kill()
        interrupts.not_at_leave(self.kill)
        return let_go

    def _run(self, begin: Callable[[], object]) -> None:
        threading.Thread(target=self._live, args=(begin,), name="ray", daemon=True).start()

    def _live(self, begin: Callable[[], object]) -> None:
        try:
            begin()
        except BaseException as error:  # It is raised where it is waited for.
            self._failed = error
            self._up.set()
            return
        self._node = ray._private.worker._global_node
        self._find_raylet()
        self._up.set()
        while not self._over.wait(1.0) and self.is_current():
            if self.fault is None and (what := self._broken()):
                self.fault = EnvironmentFault(what, _GOES_ON)
                self._end_after(UNWIND_S)

    def _init(self, address: str, compute: Compute) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        # What Ray tells its drivers (advice on memory, the autoscaler's plans) would look like our own.
        ray._private.worker.print_to_stdstream = _say_nothing
        if not self.starts:
            if chosen() == "auto":  # Ray itself sends its token to an address that it found, to no other.
                logging.getLogger("ray").setLevel(logging.CRITICAL)
                maybe_enable_token_auth_if_token_available()
            ray.init(address=address, **quiet)
            return
        least, _ = bounds(compute)
        each = 1 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
        with private_ray.starting(self.environment):
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, least * each),
                include_dashboard=False,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                **quiet,
            )

    def _cannot_start(self, why: str) -> EnvironmentFault:
        if self.starts:
            return EnvironmentFault(f"Ray could not be started on this machine: {why}", _AT_START)
        mend = "look at that cluster, or set RAY_ADDRESS=local to run on this machine"
        return EnvironmentFault(f"the Ray cluster could not be joined: {why}", mend)

    def _find_raylet(self) -> None:
        """Find the process by which this one takes part in a cluster that it did not start."""
        socket = getattr(self._node, "raylet_socket_name", None)
        if self.starts or not socket:
            return
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if f"--raylet_socket_name={socket}" in process.cmdline():
                    self._vital[process] = "raylet"

    def _note_processes(self) -> None:
        """Note the processes of the Ray that this process started, with their workers."""
        if not self.starts:
            return
        with suppress(psutil.Error):
            for process in set(psutil.Process().children()) - self._before:
                with suppress(psutil.Error):
                    program = process.cmdline()
                    if any(_RAY in word for word in program[:3]):
                        self._family.add(process)
                        name = Path(program[0]).name
                        if name in ("raylet", "gcs_server"):
                            self._vital.setdefault(process, name)
        for process in self._vital:  # Workers are the raylet's.
            with suppress(psutil.Error):
                self._family.update(process.children(recursive=True))

    def _ended(self) -> str | None:
        """Return the name of a process without which Ray is none, where it has ended."""
        return next((name for process, name in self._vital.items() if not _runs(process)), None)

    def _broken(self) -> str | None:
        """Return what happened where Ray can't be used any more."""
        self._note_processes()
        if ended := self._ended():
            return f"Ray broke: its process {ended} ended while the job ran"
        now = time.monotonic()
        if self._asked_since is None and now - self._answered > ASK_AGAIN_S:
            self._asked_since = now
            threading.Thread(target=self._ask, name="ray-ask", daemon=True).start()
        elif self._asked_since is not None and now - self._asked_since > SILENT_S:
            return f"Ray broke: its head node has not answered for {SILENT_S:.0f} s"
        return None

    def _ask(self) -> None:
        with suppress(Exception):  # What it says matters elsewhere; here, that it answers.
            ray.nodes()  # type: ignore[no-untyped-call]
            self._answered, self._asked_since = time.monotonic(), None

    def _end_after(self, seconds: float) -> None:
        """End this process where the main thread does not: it may be waiting for Ray."""
        deadline = time.monotonic() + seconds
        while interrupts.is_unwinding() and not self._over.wait(0.2):
            if time.monotonic() > deadline:
                interrupts.leave(3, str(self.fault))


_now: Session | None = None
_RAY = str(Path(ray.__file__).parent)


def _begin(session: Session) -> None:
    global _now
    _now = session
    interrupts.at_leave(session.kill)
    atexit.unregister(close)
    atexit.register(close)  # So that it comes before Ray's own, which waits without end.
    if not session.starts and ray.is_initialized():
        session.watch()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Have SIGTERM do what it did before: Ray's client makes it print a stack trace and abort."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _shut_down() -> None:
    with suppress(Exception):
        ray.shutdown()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def version_words(text: str) -> str | None:
    """Return a line of Ray's lengthy words on versions that differ; None where they are of something else."""
    if "Version mismatch" not in text:
        return None
    words = [line.strip() for line in text.splitlines() if line.strip().startswith(("Ray:", "Python:"))]
    there, here = (" with ".join(pair).replace(": ", " ") for pair in (words[:2], words[2:4]))
    return f"it runs {there}, and this is {here}; they must be the same"


def _say_nothing(*_: object, **__: object) -> None:
    pass
