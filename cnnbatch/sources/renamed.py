"""Another source's objects or labels by other names: classes that are merged, renamed or left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.truth import Class, answer_of, classes_of, renamed, with_classes
from cnnbatch.types import Shard, Source


@dataclass(frozen=True)
class Renamed(SourceWrapper):
    """The images of ``source`` with ``names`` instead of the labels that lead to them; None leaves out.

    A class of several has the id of the first of them, in the source's order.
    """

    names: Mapping[str, str | None]

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The columns of the source, with the classes by their names."""
        schema = self.source.truth_schema
        if schema is None:
            return None
        classes: dict[str, Class] = {}
        for one in classes_of(schema):
            name = self.names.get(one.name, one.name)
            if name is not None:
                classes.setdefault(name, Class(name, one.id))
        return with_classes(schema, list(classes.values()))

    @property
    def label_names(self) -> Mapping[str, str | None]:
        """What labels are called that lie in the refs as the source has them."""
        return self.names

    @property
    def occurring(self) -> tuple[str, ...] | None:
        """The names that something has, where the source knows its classes."""
        found = getattr(self.source, "occurring", None)
        names = None if found is None else [self.names.get(label, label) for label in found]
        return None if names is None else tuple(dict.fromkeys(name for name in names if name is not None))

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the source's truth by the names."""
        truth, schema = self.source.truth(shard), self.truth_schema
        if truth is None or schema is None:
            return None
        place = truth.schema.get_field_index(answer_of(schema))
        column: Any = truth.column(place).combine_chunks()
        if answer_of(schema) == "objects":
            column = renamed(column, self.names)[0]
        else:
            labels = column.to_pylist()
            column = pa.array([self.names.get(label, label) for label in labels], pa.string())
        return truth.set_column(place, schema.field(place), column).replace_schema_metadata(schema.metadata)


def with_names(source: Source, relabel: Mapping[str, int | str | None] | str) -> Renamed:
    """Return ``source`` with the names of ``input.relabel``; `UserError` for what it can't say of objects."""
    schema = source.truth_schema
    if schema is None or answer_of(schema) not in ("objects", "label"):
        raise UserError(
            "input.relabel: these images have no ground truth whose classes could be called otherwise\n"
            "  what to do: leave it out, or say where the ground truth lies (input.truth, input.label)"
        )
    if isinstance(relabel, str) or any(isinstance(target, int) for target in relabel.values()):
        raise UserError(
            "input.relabel: numbers are for the values of masks; of objects and labels give names, as in "
            "'input.relabel={lorry: car, person: null}'"
        )
    known = [one.name for one in classes_of(schema)]
    if known and (strange := [name for name in relabel if name not in known]):
        raise UserError(
            f"input.relabel: expected a class of the ground truth, got {strange[0]!r}"
            f"{meant(strange[0], known)}"
        )
    return Renamed(source, {name: target for name, target in relabel.items() if not isinstance(target, int)})
