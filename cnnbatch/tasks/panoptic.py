"""Sees a picture whole: things by their outlines, stuff by its class, and no pixel twice.

Two networks look at the same decoded picture; what they find is put together by the rule of Kirillov et al.
2019, see `cnnbatch.images.panoptic`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.images.panoptic import Rule, Thing, segments
from cnnbatch.tasks import Task
from cnnbatch.tasks.instances import Instances
from cnnbatch.tasks.networks import SeveralNetworks, classes_of_network, load_networks, of_network
from cnnbatch.tasks.segment import Segment
from cnnbatch.tasks.weighted import Names, WeightedTask
from cnnbatch.truth import BOX, MASK
from cnnbatch.truth.classes import NO_CLASS, ModelClasses
from cnnbatch.types import Backend, Precision, Runtime

if TYPE_CHECKING:
    from cnnbatch.types import Image, Model, Prepared

Share = Annotated[float, Field(ge=0, le=1)]

_VOID = NO_CLASS | {"background", "void", "unlabelled", "unlabeled"}
"""Names of semantic classes that stand for none."""
_ALIASES = "task.aliases are for the classes of both networks"
_NOT_OF_A_NETWORK = {
    ("semantic", "aliases"): _ALIASES,
    ("semantic", "map"): "the rows have masks instead of a map",
    ("semantic", "uncertain"): "only the task segment writes uncertain regions",
    ("instances", "aliases"): _ALIASES,
    ("instances", "score_threshold"): "task.score is the least score of a thing",
}
"""Fields of a network's own task that have no meaning here, and what to say of them."""
_OBJECT: list[pa.Field[Any]] = [
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("box", BOX),
    pa.field("mask", MASK),
    pa.field("is_thing", pa.bool_()),
]


class Panoptic(Task):
    """Panoptic segmentation: ``objects`` with ``is_thing`` and masks that do not overlap.

    The rule's numbers have the defaults of detectron2.
    """

    outside_fingerprint: ClassVar[frozenset[str]] = frozenset({"aliases"})
    shard_size: ClassVar[int] = 250
    batch: ClassVar[Mapping[str, int]] = {"cuda": 8, "mps": 2, "cpu": 2}
    backends: ClassVar[frozenset[Backend]] = Segment.backends & Instances.backends
    precisions: ClassVar[frozenset[Precision]] = Segment.precisions & Instances.precisions

    name: str = "panoptic"
    semantic: Segment
    """The network that gives a class to every pixel, as the task ``segment`` has it."""
    instances: Instances
    """The network that finds things, as the task ``instances`` has it."""
    stuff: Names | None = None
    """Which of the semantic classes become segments; without it, those that are neither a background nor a
    class of ``instances``."""
    overlap: Share = 0.5
    """The part of a thing's mask that surer things may have taken; if it is more, the thing is left out."""
    score: Share = 0.5
    """The least score of a thing."""
    stuff_area: Annotated[int, Field(ge=0)] = 4096
    """The least number of pixels of a stuff class, without those that things have."""
    aliases: dict[str, str | None] = {}
    """Of the truth's classes, the model's name where it differs, or null where the model has none."""

    @model_validator(mode="after")
    def _networks_keep_to_their_part(self) -> Self:
        for (name, field), instead in _NOT_OF_A_NETWORK.items():
            network: WeightedTask = getattr(self, name)
            if getattr(network, field) != type(network).model_fields[field].get_default():
                raise ValueError(f"{name}.{field}: expected it to be left out; {instead}")
        return self

    def columns(self) -> pa.Schema:
        """Return ``objects``: things, the surest first, then stuff, whose ``score`` is null."""
        return pa.schema([pa.field("objects", pa.list_(pa.struct(_OBJECT)))])

    def load(self, runtime: Runtime) -> PanopticNetworks:
        """Build both networks on ``runtime.device``."""
        found = self.instances.model_copy(update={"score_threshold": self.score})
        networks = load_networks({"semantic": self.semantic, "instances": found}, runtime)
        return PanopticNetworks(self, **networks)


class PanopticNetworks(SeveralNetworks):
    """Both networks on one device."""

    def __init__(self, task: Panoptic, semantic: Model, instances: Model) -> None:
        super().__init__({"semantic": semantic, "instances": instances})
        self._task, self._schema = task, task.columns()
        self._rule = Rule(task.overlap, task.score, task.stuff_area)
        things, all_pixels = (classes_of_network(one) for one in (instances, semantic))
        _require_known(task.stuff or (), all_pixels)
        self._stuff = dict(_stuff(task, things, all_pixels))
        self.classes = ModelClasses(
            (*things.names, *self._stuff.values()),
            things.ids if len(things.ids) == len(things.names) else (),
            {**all_pixels.aliases, **things.aliases},
        )
        self.identity = {**self.identity, "stuff": ", ".join(self._stuff.values())}

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build the rows; masks are of the upright original's size."""
        found = self.rows_of("instances", images, prepared, outputs)
        maps = [one["map"].numpy() for (one,) in of_network("semantic", prepared, outputs)]
        lists = [
            self._segments(things or [], numbers)
            for things, numbers in zip(found["objects"].to_pylist(), maps, strict=True)
        ]
        return pa.RecordBatch.from_pylist([{"objects": one} for one in lists], schema=self._schema)

    def _segments(self, objects: Sequence[Mapping[str, Any]], numbers: Any) -> list[dict[str, Any]]:
        """Return the segments of a picture, whose classes ``numbers`` (H, W) are."""
        things = [Thing(one["mask"], one["score"]) for one in objects]
        found = []
        for one in segments(things, np.asarray(numbers), self._stuff, self._rule):
            whose = objects[one.number] if one.is_thing else {"label": self._stuff[one.number], "score": None}
            box = dict(zip(("x1", "y1", "x2", "y2"), one.box_xyxy, strict=True))
            said = {"label": whose["label"], "score": whose["score"], "box": box, "mask": one.mask}
            found.append({**said, "is_thing": one.is_thing})
        return found


def _stuff(task: Panoptic, things: ModelClasses, pixels: ModelClasses) -> Iterator[tuple[int, str]]:
    """Yield the semantic classes that become segments, by their numbers; UserError for a wrong one."""
    known = things.by_name()
    for number, name in enumerate(pixels.names):
        is_thing = bool({name, pixels.aliases.get(name, name)} & known.keys())
        if task.stuff is None:
            if not is_thing and name.casefold() not in _VOID:
                yield number, name
        elif name in task.stuff:
            if is_thing:
                raise UserError(
                    f"task.stuff: {name!r} is a class of task.instances, too, and a class is of things or of "
                    "stuff\n  what to do: leave it out"
                )
            yield number, name


def _require_known(stuff: Names, pixels: ModelClasses) -> None:
    for name in stuff:
        if name not in pixels.names:
            raise UserError(
                f"task.stuff: the semantic network has no class {name!r}{meant(name, pixels.names)}\n"
                f"  its classes: {', '.join(pixels.names[:100])}"
            )
