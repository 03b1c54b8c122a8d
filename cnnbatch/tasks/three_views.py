"""Sees a picture three times: detection, semantic segmentation and instance segmentation, side by side.

Three networks look at the same decoded picture, so that a row has what each of them says of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
from pydantic import model_validator

from cnnbatch.errors import UserError
from cnnbatch.tasks import Task
from cnnbatch.tasks.detect import Detect
from cnnbatch.tasks.instances import Instances
from cnnbatch.tasks.networks import SeveralNetworks, classes_of_network, fields_of, load_networks
from cnnbatch.tasks.segment import Segment
from cnnbatch.tasks.weighted import WeightedTask
from cnnbatch.truth import renamed
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Backend, Precision, Runtime

if TYPE_CHECKING:
    from cnnbatch.types import Image, Model, Prepared

VIEWS = ("detect", "segment", "instances")
"""The fields of the job that say the networks, which are the networks' names, too."""


class ThreeViews(Task):
    """``boxes`` of the detector, ``map`` of the segmenter, and ``objects`` with masks of the third network.

    Each view is a section as the task of its name has it.
    """

    outside_fingerprint: ClassVar[frozenset[str]] = frozenset({"aliases"})
    shard_size: ClassVar[int] = 250
    batch: ClassVar[Mapping[str, int]] = Detect.batch
    backends: ClassVar[frozenset[Backend]] = Detect.backends & Segment.backends & Instances.backends
    precisions: ClassVar[frozenset[Precision]] = Detect.precisions & Segment.precisions & Instances.precisions

    name: str = "three_views"
    detect: Detect
    """The network that finds boxes."""
    segment: Segment
    """The network that gives a class to every pixel."""
    instances: Instances
    """The network that finds objects with their outlines."""
    names: dict[str, str] = {}
    """What classes of the networks are called in the rows, where two networks have two names for one."""
    aliases: dict[str, str | None] = {}
    """Of the truth's classes, the name in the rows where it differs, or null where no network has it."""

    @model_validator(mode="after")
    def _aliases_are_its_own(self) -> Self:
        for view in VIEWS:
            if getattr(self, view).aliases:
                raise ValueError(
                    f"{view}.aliases: expected task.aliases instead, which are of all three networks"
                )
        return self

    def columns(self) -> pa.Schema:
        """Return ``boxes``, the columns of a map, and ``objects`` with masks."""
        boxes = self.detect.columns().field("objects").with_name("boxes")
        return pa.schema([boxes, *self.segment.columns(), *self.instances.columns()])

    def class_names(self) -> Sequence[str] | None:
        """Return the classes of all networks where the job tells those of each."""
        found = dict[str, None]()
        for view in VIEWS:
            network: WeightedTask = getattr(self, view)
            with fields_of(view, network):
                names = network.class_names()
            if names is None:
                return None
            found |= dict.fromkeys(self._called(names))
        return [*found]

    def load(self, runtime: Runtime) -> ThreeNetworks:
        """Build the three networks on ``runtime.device``."""
        return ThreeNetworks(self, load_networks({view: getattr(self, view) for view in VIEWS}, runtime))

    def _called(self, names: Iterable[str]) -> list[str]:
        """Return what the rows call classes of these names."""
        return [self.names.get(name, name) for name in names]

    def called(self, view: str, names: Sequence[str]) -> list[str]:
        """Return what the rows call the classes of one network; UserError where two become one."""
        found = self._called(names)
        twice = next((name for name in found if found.count(name) > names.count(name)), None)
        if twice is not None and found.count(twice) > 1:
            own = [name for name in names if self.names.get(name, name) == twice]
            raise UserError(
                f"task.names: {' and '.join(dict.fromkeys(own))} of task.{view} would both be {twice!r}; "
                "expected a name of its own for each class of a network"
            )
        return found


class ThreeNetworks(SeveralNetworks):
    """The three networks on one device."""

    def __init__(self, task: ThreeViews, networks: Mapping[str, Model]) -> None:
        super().__init__(networks)
        self._schema = task.columns()
        known = {view: classes_of_network(model) for view, model in networks.items()}
        called = {view: task.called(view, one.names) for view, one in known.items()}
        self._names: Mapping[str, str | None] = {**task.names}
        of_maps = called["segment"]
        others = dict.fromkeys(name for view in VIEWS for name in called[view])
        aliases = {
            task.names.get(name, name): theirs
            for one in known.values()
            for name, theirs in one.aliases.items()
        }
        self.classes = ModelClasses(
            (*of_maps, *(name for name in others if name not in of_maps)), (), aliases, maps=len(of_maps)
        )

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build the rows from those that each network gives alone."""
        found = {view: self.rows_of(view, images, prepared, outputs) for view in VIEWS}
        columns: dict[str, Any] = {
            "boxes": found["detect"]["objects"],
            **{name: found["segment"][name] for name in found["segment"].schema.names},
            "objects": found["instances"]["objects"],
        }
        if self._names:
            for name in ("boxes", "map_classes", "objects"):
                columns[name], _ = renamed(columns[name], self._names)
        return pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)
