"""What a column of embeddings says of itself: which network gave them, and how two of them are compared.

It is in the metadata of the field, so that a part alone tells which embeddings may be compared with its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

Normalisation = Literal["none", "l2"]
Metric = Literal["euclidean", "cosine"]

_ABOUT = b"embedding"


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Where embeddings lie: those of two spaces can't be compared.

    ``network`` is the model's name, ``weights`` what tells its weights from others (SHA-256, or how random
    ones were made). Embeddings were divided by their Euclidean length where ``normalisation`` is ``l2``;
    ``metric`` is the distance by which they are compared. ``mirror`` says that each is the mean of those of a
    picture and of its mirror image, before they were divided.
    """

    network: str
    weights: str
    dimensions: int
    normalisation: Normalisation
    metric: Metric
    mirror: bool = False

    def field(self, name: str = "embedding") -> pa.Field[Any]:
        """Return a field for such embeddings, float32 lists of one size.

        Its metadata names ``mirror`` only where it is true, so that it is the same as in older outputs.
        """
        said = {name: value for name, value in asdict(self).items() if name != "mirror" or value}
        return pa.field(
            name,
            pa.list_(pa.float32(), self.dimensions),
            metadata={_ABOUT: json.dumps(said).encode()},
        )


def embedding_of_objects(schema: pa.Schema) -> pa.Field[Any] | None:
    """Return the field of the embeddings of a schema's ``objects``; None where these have none."""
    objects: Any = schema.field("objects").type if "objects" in schema.names else pa.null()
    struct: Any = getattr(objects, "value_type", pa.null())
    place = struct.get_field_index("embedding") if pa.types.is_struct(struct) else -1
    found: pa.Field[Any] | None = struct.field(place) if place >= 0 else None
    return found


def space_of(field: pa.Field[Any]) -> EmbeddingSpace | None:
    """Return the space of a field's embeddings; None where it does not say one."""
    kept = (field.metadata or {}).get(_ABOUT)
    return None if kept is None else EmbeddingSpace(**json.loads(kept))
