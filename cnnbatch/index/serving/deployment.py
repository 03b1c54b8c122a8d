"""The replicas: services in processes of Ray Serve, which starts another one where one ends."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cnnbatch.cluster import session
from cnnbatch.cluster.nodes import share
from cnnbatch.config import plugins
from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.index.serving.answers import About, Answer
from cnnbatch.index.serving.questions import Question, Refusal, WantedPicture, refusal_of
from cnnbatch.index.serving.service import ReplicaOptions, Service
from cnnbatch.inference.worker.malloc import ENVIRONMENT

STOP_S = 5.0


class Replica:
    """A service; where it can't be had, the reason is its answer to everything."""

    def __init__(self, options: ReplicaOptions, import_path: list[str]) -> None:
        sys.path.extend(folder for folder in import_path if folder not in sys.path)
        self._service: Service | Refusal
        try:
            plugins.give(options.plugins)
            self._service = Service(options.service)
        except (UserError, EnvironmentFault) as error:
            self._service = refusal_of(error)
        self._embedding = ThreadPoolExecutor(1, "embed")
        ask: Any = self.ask  # As `serve.batch` made it, which its types do not say.
        ask.set_max_batch_size(options.batch)
        ask.set_batch_wait_timeout_s(options.batch_wait_s)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def ask(self, questions: list[Question]) -> list[Answer | Refusal]:
        """Answer those questions together that came while the ones before were answered."""
        service = self._service
        if isinstance(service, Refusal):
            return [service] * len(questions)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._embedding, service.answers, questions)

    async def picture(self, wanted: WantedPicture) -> bytes | Refusal:
        """Return a crop."""
        service = self._service
        return service if isinstance(service, Refusal) else await asyncio.to_thread(service.picture, wanted)

    async def about(self) -> About | Refusal:
        """Say what the index is now, or why it can't be served."""
        service = self._service
        return service if isinstance(service, Refusal) else await asyncio.to_thread(service.about)


class Replicas:
    """The backend that is a deployment of Ray Serve."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def ask(self, question: Question) -> Answer | Refusal:
        """Answer a question by one of the replicas."""
        found: Answer | Refusal = await self._called("ask", question)
        return found

    async def picture(self, wanted: WantedPicture) -> bytes | Refusal:
        """Return a crop."""
        found: bytes | Refusal = await self._called("picture", wanted)
        return found

    async def about(self) -> About | Refusal:
        """Say what the index is now."""
        found: About | Refusal = await self._called("about")
        return found

    async def _called(self, method: str, *values: object) -> Any:
        try:
            return await getattr(self._handle, method).remote(*values)
        except (RayError, RayServeException) as error:
            what = session.first_sentence(error)
            return Refusal(503, f"no replica could answer: {what}\n  what to do: ask again in a few seconds")


@contextmanager
def replicas(options: ReplicaOptions) -> Iterator[Replicas]:
    """Give replicas, which are ready, while the block lasts.

    Raises UserError or EnvironmentFault where they can't be had.
    """
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    compute = Compute(workers=options.replicas)
    session.connect(compute, environment=ENVIRONMENT)
    name = f"cnnbatch-{uuid4().hex[:12]}"
    with session.faults():
        try:
            serve.start(proxy_location="Disabled")
            handle = serve.run(_application(options, compute), name=name, route_prefix=None)
            about = handle.about.remote().result()
            if isinstance(about, Refusal):
                raise (
                    UserError(about.detail)
                    if about.status == 422
                    else EnvironmentFault(*about.detail.split("\n  what to do: ", 1))
                )
            yield Replicas(handle)
        except RuntimeError as error:  # Serve's only word where a replica does not start.
            raise EnvironmentFault(
                f"the replicas could not be started: {session.first_sentence(error)}",
                "look at the log of Ray Serve, and whether cnnbatch[serve] is installed on all nodes",
            ) from error
        finally:
            if not session.is_own():  # Else all of Ray ends with this process.
                with suppress(Exception):
                    serve.delete(name, _blocking=False)


def _application(options: ReplicaOptions, compute: Compute) -> serve.Application:
    each = _each(options.replicas, compute)
    service = replace(options.service, cpus=each["num_cpus"], own_process=True)
    own = ENVIRONMENT.items() <= session.environment().items()
    actor = {**each, **({} if own else {"runtime_env": {"env_vars": dict(ENVIRONMENT)}})}
    deployment: Any = serve.deployment(
        Replica,
        num_replicas=options.replicas,
        ray_actor_options=actor,
        max_ongoing_requests=8 * options.batch,
        graceful_shutdown_timeout_s=STOP_S,
        logging_config=LoggingConfig(enable_access_log=False, log_level="ERROR"),
    )
    bound: serve.Application = deployment.bind(replace(options, service=service), [*sys.path])
    return bound


def _each(count: int, compute: Compute) -> dict[str, Any]:
    """Return the CPUs and GPUs of a replica; raises UserError where there is no room for so many."""
    nodes = session.nodes()
    gpus = share(compute, nodes).gpus
    cpus = max(1, int(max(node.cpus for node in nodes)) // -(-count // len(nodes)))
    room = sum(min(int(node.cpus // cpus), int(node.gpus // gpus) if gpus else count) for node in nodes)
    if room < count:
        raise UserError(
            f"--replicas: expected at most {room}, which is what there is room for, got {count}\n"
            "  what to do: ask for fewer, or start more nodes"
        )
    return {"num_cpus": cpus, "num_gpus": gpus}
