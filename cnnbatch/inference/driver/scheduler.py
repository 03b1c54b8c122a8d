"""Plain Ray actors pinned to GPUs, fed shard by shard; the only importer of ray for map jobs.

The driver owns every attempt: actors never restart by themselves, since only the driver can tell a
fault of an image from one of a machine. The price is this scheduler; what it decides by is pure and
lies in `attempts`, `strikes` and `cluster_nodes`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cnnbatch.cluster import session
from cnnbatch.cluster.nodes import Node, bounds, lacking, placements, require_room, share, too_few
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.driver.actors import SHARDS_IN_FLIGHT, Actor, Call, Heartbeats
from cnnbatch.inference.driver.retries import Attempts, Probe, Question, Strikes
from cnnbatch.inference.messages import Fault, Order, Ready, Settling, Work, as_error, failure_of
from cnnbatch.inference.worker_process import WorkerProcess, take_journal
from cnnbatch.storage import is_local, parent
from cnnbatch.types import Receipt, Shard

LOOK_AGAIN_S = 5.0
FOLDERS_ASKED = 8  # of the first images, whether every node sees them
ANSWER_S = 60.0
CLOSE_S = 5.0
# glibc's malloc reads these when a process starts (man mallopt). A forward pass frees and asks for the
# same tens of megabytes again and again; by default they go back to the kernel each time, and every
# page is faulted in anew: 1,300 faults and a quarter of the time an image for MobileNetV2. One arena,
# since only the main one keeps what it has by these rules, and threads that exist keep theirs.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}


class Pool:
    """Runs shards on actors until none is left; `predict` yields receipts as they come.

    ``note`` is told what a person should know: a node that is left out, an image that was condemned.
    ``shards`` is how many there are at most, where that is known: more workers would find no work.
    """

    def __init__(
        self, order: Order, settling: Settling, note: Callable[[str], None], shards: int | None = None
    ) -> None:
        self._order = order
        self._compute = compute = order.job.compute
        self._settling = settling
        self._measuring: dict[str, Actor] = {}
        self._waiting: list[tuple[Actor, Ready]] = []
        self._unmeasurable: set[str] = set()
        self._note = note
        self._class = ray.remote(WorkerProcess)
        self._least, self._most = bounds(compute)
        self._useful = shards if compute.workers == "auto" else None
        self._nodes: list[Node] = session.nodes()
        self._share = share(compute, self._nodes)
        require_room(compute, self._nodes, self._share)
        if lack := lacking(compute, self._nodes, self._share):
            if session.is_own():
                raise lack
            note(f"waiting up to {compute.start_timeout_s:g} s for nodes: {lack.what}")
        self._actors: list[Actor] = []
        self._heartbeats = Heartbeats(compute)
        self._room: dict[str, int] = {}
        self._attempts = Attempts()
        self._strikes = Strikes()
        self._enough_at = self._looked = 0.0
        self._started_enough = False

    def predict(self, works: Iterator[Work | None], suspects: Collection[int]) -> Iterator[Receipt]:
        """Yield the receipt of every shard in ``works``, in the order in which they finish.

        Of the shards numbered ``suspects`` every image is tried alone first. Raises UserError and
        EnvironmentFault.
        """
        first = next((work for work in works if work is not None), None)
        if first is None:
            return
        self._require_shared_paths(first.shard)
        works = chain([first], works)
        self._suspects = set(suspects)
        self._enough_at = time.monotonic()
        waiting: Work | None = None
        exhausted = False
        try:
            while True:
                session.require_alive()
                self._grow(enough=exhausted and waiting is None and not self._attempts)
                while not exhausted and (waiting is None or self._send(waiting)):
                    waiting, exhausted, slow = _next(works)
                    if slow:
                        break
                self._send_again()
                if exhausted and waiting is None and not self._attempts and not self._running():
                    return
                yield from self._collect()
                self._wake()
                self._bury_silent()
                self._require_enough()
        finally:
            self._disband()

    def _grow(self, enough: bool) -> None:
        """Ask for as many actors as the nodes alive can hold; looked at again while the run lasts."""
        now = time.monotonic()
        if self._looked and now - self._looked < LOOK_AGAIN_S:
            return
        self._looked = now
        self._nodes = [node for node in session.nodes() if node.id not in self._strikes.left_out]
        for node in self._nodes:
            self._room.setdefault(node.id, self._share.fits(node))
        for lost in self._attempts.probed_nodes() - {node.id for node in self._nodes}:
            self._attempts.give_up_node(lost)
        if enough and self._actors:
            return  # Nothing is waiting for a place: what runs will finish it.
        held: dict[str, int] = {}
        for actor in self._actors:
            held[actor.node] = held.get(actor.node, 0) + 1
        wanted = [node for node in self._attempts.probed_nodes() if not held.get(node)]
        wanted += placements(self._nodes, held, self._room)
        if self._useful is not None:
            wanted = wanted[: max(0, self._useful - len(self._actors))]
        if self._most is not None:
            wanted = wanted[: self._most - len(self._actors)]
            if not self._started_enough and len(self._actors) + len(wanted) < self._most:
                wanted += [""] * (self._most - len(self._actors) - len(wanted))  # An autoscaler sees these.
        for node_id in wanted:
            self._actors.append(self._hire(node_id))

    def _hire(self, node: str) -> Actor:
        where = _at(node) if node else "SPREAD"
        handle = self._class.options(
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=SHARDS_IN_FLIGHT + 2,  # To close, and for heartbeats.
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
            scheduling_strategy=where,
        ).remote(sys.path)
        actor = Actor(handle, node)
        actor.ask("load", None, "load", self._order)
        return actor

    def _send(self, work: Work) -> bool:
        """Send ``work`` to the free actor that has least to do; say whether it is taken care of."""
        if work.shard.index in self._suspects:
            self._suspects.remove(work.shard.index)
            self._attempts.failed(work, range(len(work.shard.refs)), "an earlier run ended at it")
            return True
        free = [actor for actor in self._actors if actor.is_free()]
        if not free:
            return False
        actor = min(free, key=lambda one: len(one.calls))
        actor.ask("run", work, "run", work)
        return True

    def _send_again(self) -> None:
        """Send what has to be tried alone to actors that do nothing else, and shards to be run again."""
        for actor in self._actors:
            if actor.ready and not actor.calls and (question := self._attempts.next_question(actor.node)):
                if isinstance(question, Probe):
                    actor.ask("question", question, "probe")
                else:
                    actor.ask("question", question, "try_alone", question.shard, question.position)
        while any(actor.is_free() for actor in self._actors) and (work := self._attempts.next_work()):
            self._send(work)

    def _running(self) -> bool:
        return any(kind != "load" for actor in self._actors for kind, _ in actor.calls.values())

    def _collect(self) -> Iterator[Receipt]:
        """Take the answers that have come; wait for one at most a second."""
        asked = {call: actor for actor in self._actors for call in actor.calls}
        if not asked:
            time.sleep(0.2)
            return
        done, _ = ray.wait(list(asked), num_returns=1, timeout=1.0, fetch_local=False)
        for call in done:
            actor = asked[call]
            if actor not in self._actors:
                continue
            try:
                answer = ray.get(call, timeout=ANSWER_S)
            except (RayActorError, ActorUnschedulableError) as death:
                self._bury(actor, session.first_sentence(death))
                continue
            kind, about = actor.calls.pop(call)
            if isinstance(answer, Fault):
                self._fault(actor, kind, about, answer)
            elif kind in ("load", "measure"):
                self._welcome(actor, answer)
            elif kind == "run":
                self._strikes.succeeded(actor.node)
                yield answer
            elif isinstance(about, Probe):
                self._attempts.answered(about.suspect, about.failure)
            else:
                self._attempts.answered(about, answer)

    def _welcome(self, actor: Actor, ready: Ready) -> None:
        """Take an actor that has loaded or measured: it measures, waits, loads again, or gets to work."""
        if ready.open and self._measures_or_waits(actor, ready):
            return
        kept = self._settling.settle(ready)
        self._order = replace(self._order, kept=kept)
        known = kept.get(ready.key)
        if known is None or (ready.open and not ready.settings.items() <= known.items()):
            actor.ask("load", None, "load", self._order)
            return
        actor.ready = ready
        if not actor.node:
            try:
                actor.node = ray.get(actor.handle.__ray_call__.remote(_node_of), timeout=ANSWER_S)
            except (RayActorError, GetTimeoutError) as death:
                self._bury(actor, session.first_sentence(death))
                return
        if all(other is actor or not other.ready for other in self._actors if other.node == actor.node):
            self._bound_by_memory(actor, ready)

    def _measures_or_waits(self, actor: Actor, ready: Ready) -> bool:
        """Have the first actor of a kind of device measure how to run; the others wait for what it finds."""
        kind = ready.settings["device"]
        if (measuring := self._measuring.get(kind)) in self._actors and measuring.is_measuring():
            self._waiting.append((actor, ready))
            return True
        sample = None if kind in self._unmeasurable else self._settling.sample(ready, len(self._actors))
        if sample is None:
            return False
        self._measuring[kind] = actor
        actor.ask("measure", kind, "measure", sample)
        return True

    def _wake(self) -> None:
        """Look again at the actors that wait: what they wait for may be settled, or its actor gone."""
        waiting, self._waiting = self._waiting, []
        for actor, ready in waiting:
            if actor in self._actors:
                self._welcome(actor, ready)

    def _bound_by_memory(self, first: Actor, ready: Ready) -> None:
        """Give up the actors of a node for which its memory does not suffice, by what the first one took."""
        fits = 1 + max(0, ready.left_bytes // max(1, ready.rss_bytes))
        if ready.settings["device"] == "mps":  # The machine's one GPU, which Ray does not count.
            fits = 1
        if fits >= self._room.get(first.node, 0):
            return
        self._room[first.node] = fits
        loading = [actor for actor in self._actors if actor.node == first.node and actor is not first]
        for actor in loading[fits - 1 :]:
            self._dismiss(actor)
        what = "one GPU" if ready.settings["device"] == "mps" else "memory"
        self._note(f"{ready.host}: {what} for {fits} workers of {ready.rss_bytes / 2**30:.1f} GB")

    def _fault(self, actor: Actor, kind: Call, about: Any, fault: Fault) -> None:
        """Take a fault that an actor reported: it is replaced, and its other shards go elsewhere."""
        if fault.kind == "user":
            raise as_error(fault)
        if kind == "run" and fault.kind == "predict":
            self._attempts.failed(about, fault.positions, fault.what)
        elif kind == "run":
            self._attempts.requeue(about)
        elif kind == "question":
            self._ask_elsewhere(about)
        elif kind == "measure" and fault.kind == "predict":
            self._unmeasurable.add(about)
        node = actor.node
        self._dismiss(actor)
        if fault.kind == "environment":
            self._struck(node, EnvironmentFault(fault.what, fault.mend))

    def _struck(self, node: str, fault: EnvironmentFault) -> None:
        """Count a fault of the environment: leave the node out, wait, or give up."""
        if self._strikes.failed(node, [alive.id for alive in self._nodes]):
            host = next((alive.host for alive in self._nodes if alive.id == node), node)
            self._note(f"{host} is left out: it fails what others do ({fault.what})")
            for actor in [actor for actor in self._actors if actor.node == node]:
                self._give_back(actor)
                self._dismiss(actor)
        pause = self._strikes.pause_s()
        if pause is None:
            raise fault
        time.sleep(pause)
        self._looked = 0.0

    def _bury_silent(self) -> None:
        """End the actors that are heard of no more; one that can't be ended is left alone."""
        for actor in self._heartbeats.silent(self._actors):
            if actor not in self._actors:
                continue  # Given up meanwhile, with its node.
            self._note(f"a worker has been silent for {actor.silent_s:.0f} s: its images go to another one")
            ray.kill(actor.handle)
            self._bury(actor, "it was silent", silent=True)

    def _bury(self, actor: Actor, words: str, silent: bool = False) -> None:
        """Take the death of an actor: its journal says which images it was at."""
        self._actors.remove(actor)
        self._looked = 0.0
        lost = bool(actor.node) and not _is_alive(actor.node)  # With its node, which is nobody's fault.
        found, hung = (None, False) if lost else self._last_words(actor)
        if not found and not lost and any(kind == "run" for kind, _ in actor.calls.values()):
            self._struck(
                actor.node, EnvironmentFault("a worker ended between its images", "look at its memory")
            )
        for kind, about in actor.calls.values():
            if kind == "load" and lost:
                continue
            if kind == "load":
                what = f"a worker ended while it loaded the model: {words}"
                self._struck(
                    actor.node, EnvironmentFault(what, "look at that machine's memory and Ray's logs")
                )
            elif kind == "measure":
                self._unmeasurable.add(about)
            elif kind == "run":
                suspects = (found or {}).get(about.shard.index, [])
                self._attempts.failed(about, suspects, "the process ended")
            elif found is None:
                self._ask_elsewhere(about)
            elif isinstance(about, Probe):
                self._ask_elsewhere(about)
                what = "a worker ended on random pixels, as it did on every image it was asked"
                self._struck(
                    actor.node, EnvironmentFault(what, "look at that machine's device, memory and logs")
                )
            else:
                failure = failure_of(hung or silent, self._compute.batch_timeout_s)
                self._attempts.ask(Probe(about, failure, actor.node))

    def _ask_elsewhere(self, question: Question) -> None:
        """Ask again what was not answered: of a probe, the suspect that it was for."""
        self._attempts.ask(question.suspect if isinstance(question, Probe) else question)

    def _last_words(self, actor: Actor) -> tuple[dict[int, list[int]] | None, bool]:
        """Return what an ended actor was at and whether it hung; None where that can't be read."""
        if actor.ready is None:
            return None, False
        read = ray.remote(take_journal).options(
            num_cpus=0, max_retries=0, scheduling_strategy=_at(actor.node)
        )
        try:
            found, hung = ray.get(read.remote(actor.ready.journal), timeout=ANSWER_S)
        except RayError:
            return None, False
        return found, hung

    def _give_back(self, actor: Actor) -> None:
        for kind, about in actor.calls.values():
            if kind == "run":
                self._attempts.requeue(about)
            elif kind == "question":
                self._attempts.ask(about)

    def _dismiss(self, actor: Actor) -> None:
        """End an actor; what it was asked and had not answered is asked of another."""
        self._give_back(actor)
        actor.calls.clear()
        self._actors.remove(actor)
        self._looked = 0.0
        _end([actor])

    def _disband(self) -> None:
        """End all actors, in a run that is over or was stopped; of a Ray that broke nothing is asked."""
        actors, self._actors = self._actors, []
        if session.is_alive():
            _end(actors)

    def _require_enough(self) -> None:
        """Stop where there have been too few workers for too long: at first the least number, later one."""
        ready = sum(actor.ready is not None or actor.is_measuring() for actor in self._actors)
        ready += len(self._waiting)
        self._started_enough = self._started_enough or ready >= self._least
        now, least = time.monotonic(), 1 if self._started_enough else self._least
        if ready >= least:
            self._enough_at = now
        elif now - self._enough_at > self._compute.start_timeout_s:
            raise too_few(self._compute, self._nodes, self._share, least, ready)

    def _require_shared_paths(self, shard: Shard) -> None:
        """Refuse local paths that some node does not see, before any image is called missing.

        Asked are the output's and the folders of the first images that are there as this node sees it: what
        the job's input names may be a pattern, a list or an earlier output.
        """
        folders = dict.fromkeys(parent(ref.uri) for ref in shard.refs if is_local(ref.uri))
        seen = islice((folder for folder in folders if Path(folder).is_dir()), FOLDERS_ASKED)
        local = [path for path in (self._order.output.path("_job"), *seen) if is_local(path)]
        if len(self._nodes) < 2 or not local:
            return
        look = ray.remote(_missing)
        asked = {
            node.host: look.options(num_cpus=0, scheduling_strategy=_at(node.id)).remote(local)
            for node in self._nodes
        }
        for host, call in asked.items():
            try:
                missing = ray.get(call, timeout=ANSWER_S)
            except RayError:
                continue  # That node was lost meanwhile, and will be given no shard.
            if missing:
                raise UserError(
                    f"node {host} does not see {missing[0]}: on several nodes a local path must be shared\n"
                    "  what to do: mount it on every node, or use an object store (s3://, gs://, az://)"
                )


def _end(actors: Sequence[Actor]) -> None:
    """Have actors remove their journals, and end them."""
    if closing := [actor.handle.close.remote() for actor in actors if actor.ready]:
        ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S, fetch_local=False)
    for actor in actors:
        ray.kill(actor.handle)


def _next(works: Iterator[Work | None]) -> tuple[Work | None, bool, bool]:
    """Return the next work, whether that was all, and whether the listing has to be waited for."""
    try:
        work = next(works)
    except StopIteration:
        return None, True, False
    return work, False, work is None


def _at(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _is_alive(node: str) -> bool:
    return any(alive.id == node for alive in session.nodes())


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]


def _node_of(_: object) -> str:
    return str(ray.get_runtime_context().get_node_id())
