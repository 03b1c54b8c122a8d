"""Several networks that look at the same decoded picture: what tasks with more than one have in common.

An input says which network it is for, and the worker makes batches of one network and one shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.truth.classes import ModelClasses

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from cnnbatch.tasks.weighted import WeightedTask
    from cnnbatch.types import Image, Model, Prepared, Runtime


def load_networks(tasks: Mapping[str, WeightedTask], runtime: Runtime) -> dict[str, Model]:
    """Build the network of each task; what is wrong with one is said by its own field: ``task.NAME.weights``.

    Raises UserError and EnvironmentFault as the tasks do.
    """
    found = {}
    for name, task in tasks.items():
        with fields_of(name, task):
            found[name] = task.load(runtime)
    return found


@contextmanager
def fields_of(name: str, task: WeightedTask) -> Iterator[None]:
    """Have errors name a field of one of several networks by its place in the job: ``task.NAME.weights``.

    ``task`` is the section of the job that lies there, which names its own fields ``task.weights``.
    """
    field = re.compile(rf"(?<![\w/.-])task\.(?=(?:{'|'.join(type(task).model_fields)})\b)")

    def named(text: str) -> str:
        return field.sub(f"task.{name}.", text)

    try:
        yield
    except UserError as error:
        raise UserError(named(str(error))) from error
    except EnvironmentFault as fault:
        raise EnvironmentFault(named(fault.what), named(fault.mend)) from fault


class SeveralNetworks:
    """Networks by name, on one device; a subclass builds `rows`. See `cnnbatch.types.Model` for the steps."""

    def __init__(self, networks: Mapping[str, Model]) -> None:
        self.networks = networks
        models = networks.values()
        licences = dict.fromkeys(getattr(one, "licence", None) for one in models)
        self.licence = " and ".join(filter(None, licences))
        self.notes = tuple(
            f"task.{name}: {note}" for name, one in networks.items() for note in getattr(one, "notes", ())
        )
        names = dict.fromkeys(name for one in models for name in one.identity)
        self.identity: Mapping[str, str] = {
            name: " and ".join(one.identity.get(name, "") for one in models) for name in names
        }

    def decode_size(self, size: tuple[int, int]) -> None:
        """Ask for the whole picture: each network resizes it from there."""

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Return the inputs of all networks, which say whose they are."""
        return [
            replace(one, network=name)
            for name, model in self.networks.items()
            for one in model.prepare(image)
        ]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> Any:
        """Raise: the inputs go through `networks`, each through its own."""
        raise NotImplementedError("every input says which of several networks it is for")

    def rows_of(
        self,
        network: str,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Return the rows that one of the networks gives, as if it was alone."""
        return self.networks[network].rows(
            images, *(of_network(network, prepared, values) for values in (prepared, outputs))
        )


def of_network(
    network: str, prepared: Sequence[Sequence[Prepared]], values: Sequence[Sequence[Any]]
) -> list[list[Any]]:
    """Return of each image the ``values`` of those inputs that are for one network."""
    return [
        [value for one, value in zip(inputs, some, strict=True) if one.network == network]
        for inputs, some in zip(prepared, values, strict=True)
    ]


def classes_of_network(model: Model) -> ModelClasses:
    """Return the classes of a network of this package, all of which have them."""
    found: ModelClasses = model.classes  # type: ignore[attr-defined]
    return found
