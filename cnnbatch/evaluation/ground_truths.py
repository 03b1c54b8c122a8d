"""What an evaluation does with the ground truth of each kind of answer, before and while it is judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.config.entries import Entries, as_instance
from cnnbatch.images import class_map
from cnnbatch.metrics.objects import Labels, flatten
from cnnbatch.sources.objects import TRUTH
from cnnbatch.sources.soundness import SAMPLED, require_sound
from cnnbatch.truth import Class, classes_of, ignored_of, object_labels, renamed, with_classes, with_ignored
from cnnbatch.truth.classes import ModelClasses, match_classes, match_map_classes, no_known_label
from cnnbatch.types import Shard, Source

UNKNOWN = "images of a class that the model does not know, counted as mistakes"
NO_AREA = "true objects of no area, counted as missed"
OUTSIDE = "true objects reaching beyond the edge of the image, counted as they are"

LISTED = 10_000
"""Images whose objects are read before the first shard, where the listing has them."""
READ = 2_000
"""The same where each image's objects are in a file of their own."""
REMEMBERED = 1000
"""Unknown labels from which on no more are collected for a message."""

_NEAR = 1.0  # Pixels that a box may reach beyond its image: they are rounded in many ways.

Aliases = Mapping[str, str | None]
"""What the job calls the classes of its ground truth; None: it leaves the class out."""


@dataclass(frozen=True, slots=True)
class Naming:
    """How a model calls the classes of a ground truth.

    ``classes`` are the model's, ``aliases`` the job's. ``names`` lead from the ground truth's classes to the
    model's, where they are known beforehand; other classes are matched as they come.
    """

    classes: ModelClasses | None
    aliases: Aliases
    names: Aliases


@dataclass(frozen=True, slots=True)
class PlannedImages:
    """The images of ``source`` that are to be predicted: all of them where they are ``whole``.

    ``shards`` streams them, None where the listing has to be waited for.
    """

    source: Source
    shards: Callable[[], Iterable[Shard | None]]
    whole: bool
    aliases: Aliases


class GroundTruth:
    """The ground truth of a kind of answer that has no classes and nothing odd; others override."""

    def require_early(self, model: ModelClasses, planned: PlannedImages) -> None:
        """Insist, before the first shard is predicted, that the model can be judged; raises UserError."""

    def require_known(self, truth: pa.Table, model: ModelClasses, aliases: Aliases) -> None:
        """Insist that the model can be judged by one shard's ground truth; raises UserError."""

    def difficult(self, truth: pa.Table) -> bool | None:
        """Say whether difficult objects are marked; None where this part does not show it."""
        return False

    def named(self, truth: pa.Table, naming: Naming) -> tuple[pa.Table, Counter[str]]:
        """Return the ground truth by the model's names, and how much was left out, by reason.

        Raises UserError where it has a class that the model has to know.
        """
        return truth, Counter()

    def oddities(self, predictions: pa.Table, truth: pa.Table, classes: ModelClasses | None) -> Counter[str]:
        """Count what is odd in the ground truth that is judged by; ``predictions`` have the images' sizes."""
        return Counter()

    def unknown(self, truth: pa.Table, classes: ModelClasses | None) -> list[str]:
        """Return the labels of images that the model does not know, each once."""
        return []


class LabelTruth(GroundTruth):
    """Labels: an unknown one is a mistake, and one that is known is enough to judge by."""

    def require_early(self, model: ModelClasses, planned: PlannedImages) -> None:
        """Insist on one known label; the plan is read up to it."""
        known, unknown = model.by_name(), dict[str, None]()
        for shard in filter(None, planned.shards()):
            table = planned.source.truth(shard)
            labels: list[Any] = [] if table is None else table["label"].unique().drop_null().to_pylist()
            if not known.keys().isdisjoint(labels):
                return
            if len(unknown) < REMEMBERED:
                unknown |= dict.fromkeys(labels)
        if unknown:
            raise no_known_label(model, list(unknown))

    def named(self, truth: pa.Table, naming: Naming) -> tuple[pa.Table, Counter[str]]:
        """Return labels by the names that the job gives them; those that it leaves out are null."""
        if not naming.aliases:
            return truth, Counter()
        coded: Any = truth["label"].combine_chunks().dictionary_encode()
        names = [naming.aliases.get(label, label) for label in coded.dictionary.to_pylist()]
        labels: Any = pa.array(names, pa.string()).take(coded.indices)
        return _with_column(truth, "label", labels), Counter()

    def oddities(self, predictions: pa.Table, truth: pa.Table, classes: ModelClasses | None) -> Counter[str]:
        """Count the images of unknown classes."""
        if classes is None:
            return Counter()
        known: Any = pc.is_in(truth["label"], pa.array(classes.names, pa.string()))
        return +Counter({UNKNOWN: int((~known.to_numpy()).sum())})

    def unknown(self, truth: pa.Table, classes: ModelClasses | None) -> list[str]:
        """Return the unknown labels."""
        known = set() if classes is None else set(classes.names)
        labels = [] if classes is None else truth["label"].unique().drop_null().to_pylist()
        return [str(label) for label in labels if label not in known]


class ObjectsTruth(GroundTruth):
    """Objects: the model has to know the class of each, unless the job leaves it out."""

    def require_early(self, model: ModelClasses, planned: PlannedImages) -> None:
        """Insist on the classes of the first images' objects; of all, where the source lists them.

        And on the masks of the first images; of a few, where these are no files of their own.
        """
        if getattr(planned.source, "reads_masks", False):
            require_sound(planned.source, filter(None, planned.shards()))
        elif getattr(planned.source, "has_masks", False):
            require_sound(planned.source, filter(None, planned.shards()), SAMPLED)
        _require_occurring(model, planned.source.truth_schema, _early_labels(planned), planned.aliases)

    def require_known(self, truth: pa.Table, model: ModelClasses, aliases: Aliases) -> None:
        """Insist on the classes of one shard's objects."""
        _require_occurring(model, truth.schema, object_labels(truth), aliases)

    def difficult(self, truth: pa.Table) -> bool | None:
        """Say whether any object is marked; None where there are no objects."""
        objects: Any = pc.list_flatten(truth["objects"])
        return bool(pc.struct_field(objects, "difficult").null_count < len(objects)) if len(objects) else None

    def named(self, truth: pa.Table, naming: Naming) -> tuple[pa.Table, Counter[str]]:
        """Return the objects by the model's names; those of classes that the job leaves out are counted."""
        names = dict(naming.names)
        labels = [label for label in object_labels(truth) if label not in names]
        if labels and naming.classes:
            names |= match_classes(naming.classes, [Class(label, label) for label in labels], naming.aliases)
        objects, left_out = renamed(truth["objects"].combine_chunks(), names)  # type: ignore[arg-type]
        reason = "true objects of {}, a class that is left out"
        notes = Counter({reason.format(label): count for label, count in left_out.items()})
        schema = _with_names(truth.schema, names)
        return _with_column(truth, "objects", objects).replace_schema_metadata(schema.metadata), notes

    def oddities(self, predictions: pa.Table, truth: pa.Table, classes: ModelClasses | None) -> Counter[str]:
        """Count the boxes that have no area or reach beyond their image."""
        objects = flatten(truth["objects"], Labels())
        boxes = objects.boxes_xywh
        ends = np.stack([_side(predictions, name)[objects.image] for name in ("width", "height")], axis=1)
        outside = (boxes[:, :2] < -_NEAR) | (boxes[:, :2] + boxes[:, 2:] > ends + _NEAR)
        counts = {NO_AREA: (boxes[:, 2:] <= 0).any(axis=1), OUTSIDE: outside.any(axis=1)}
        return +Counter({reason: int(flags.sum()) for reason, flags in counts.items()})


class MapTruth(GroundTruth):
    """Maps of classes: pixels of a class that the model does not know do not count, which the metric says."""

    def require_early(self, model: ModelClasses, planned: PlannedImages) -> None:
        """Insist on one known class, and on the first images' maps: whole ones, of their images' sizes."""
        schema = planned.source.truth_schema
        match_map_classes(model, () if schema is None else classes_of(schema), planned.aliases)
        require_sound(planned.source, filter(None, planned.shards()))

    def named(self, truth: pa.Table, naming: Naming) -> tuple[pa.Table, Counter[str]]:
        """Return the maps with classes by the model's names; numbers of those left out are to be ignored.

        A class that the model does not know keeps its name: the metric counts its pixels.
        """
        if naming.classes is None:
            return truth, Counter()
        classes = classes_of(truth.schema)
        names = match_map_classes(naming.classes, classes, naming.aliases)
        left_out = {int(one.id): one.name for one in classes if names.get(one.name, one.name) is None}
        known = [Class(names.get(one.name) or one.name, one.id) for one in classes if one.id not in left_out]
        schema = with_ignored(with_classes(truth.schema, known), ignored_of(truth.schema).union(left_out))
        return truth.replace_schema_metadata(schema.metadata), _left_out_pixels(truth["map"], left_out)


def _left_out_pixels(maps: pa.ChunkedArray[Any], left_out: Mapping[int, str]) -> Counter[str]:
    """Count the pixels of classes that the job leaves out, by class."""
    found = Counter[str]()
    for value in maps.drop_null() if left_out else ():
        counts = class_map.counts(value.as_py())
        found.update({name: counts.get(number, 0) for number, name in left_out.items()})
    return +Counter({f"pixels of {name}, a class that is left out": n for name, n in found.items()})


GROUND_TRUTHS: Entries[GroundTruth | type[GroundTruth]] = Entries(
    "evaluation", {"label": LabelTruth(), "objects": ObjectsTruth(), "map": MapTruth()}, GroundTruth
)
"""What is done with the ground truth of a kind of answer, by the kind; nothing where there is no entry."""


def ground_truth(answer: str) -> GroundTruth:
    """Return what is done with the ground truth of a kind of answer."""
    return as_instance(GROUND_TRUTHS.get(answer, GroundTruth))


def _require_occurring(
    model: ModelClasses, schema: pa.Schema | None, labels: Iterable[str], aliases: Aliases
) -> None:
    """Insist that the model knows each of the ``labels`` of objects; ``schema`` may list classes with ids."""
    occurring = set(labels)
    listed = {one.name: one for one in (() if schema is None else classes_of(schema))}
    others = [Class(name, name) for name in sorted(occurring - listed.keys())]
    match_classes(model, [*listed.values(), *others], aliases, occurring)


def _early_labels(planned: PlannedImages) -> set[str]:
    """Return the classes of as many objects as the first shard does not have to wait for long."""
    if planned.whole and (listed := getattr(planned.source, "occurring", None)):
        return set(listed)
    in_ref = TRUTH in planned.source.columns.names
    found, images, most = set[str](), 0, LISTED if in_ref else READ
    for shard in filter(None, planned.shards()):
        found.update(_in_refs(planned.source, shard) if in_ref else _in_files(planned.source, shard))
        images += len(shard.refs)
        if images >= most:
            break
    return found


def _in_refs(source: Source, shard: Shard) -> Iterator[str]:
    names: Aliases = getattr(source, "label_names", {})
    for ref in shard.refs:
        for one in json.loads(ref.columns[TRUTH] or "{}").get("objects") or ():
            name = names.get(one["label"], one["label"])
            if name is not None:
                yield name


def _in_files(source: Source, shard: Shard) -> list[str]:
    table = source.truth(shard)
    return [] if table is None else object_labels(table)


def _with_names(schema: pa.Schema, names: Aliases) -> pa.Schema:
    """Return a schema whose classes have other names; one that ``names`` lead to None is left out."""
    called = [(names.get(one.name, one.name), one.id) for one in classes_of(schema)]
    known = [Class(name, number) for name, number in called if name is not None]
    return with_classes(schema, known) if called else schema


def _with_column(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def _side(predictions: pa.Table, name: str) -> NDArray[np.float64]:
    """Return the images' widths or heights; of one that could not be read, none is exceeded."""
    side: Any = predictions[name].cast(pa.float64())
    values: NDArray[np.float64] = pc.fill_null(side, np.inf).to_numpy()
    return values
