"""How well similarities tell pictures of one person of an index from those of two, where it says who is who.

The numbers are those of `metrics.embeddings`, by the cosine, as an index compares. Pictures without a face
are no part of an index: they do not count as failed here, as they do in an evaluation of its outputs.
"""

from __future__ import annotations

import numpy as np

from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.manifest import Manifest, Measured, Verification
from cnnbatch.index.named_pictures import FOLDER, NamedPictures, named_pictures
from cnnbatch.metrics import Value, embeddings

_BLOCK = 8_192  # pictures whose vectors are float32 at once


def verification_of(copy: LocalCopy, manifest: Manifest) -> Verification:
    """Return the numbers of all pairs of some pictures of named people; of several faces the largest counts.

    `metrics.embeddings` says which pictures are taken. The manifest names ``people``.
    """
    assert manifest.people is not None  # Else nobody knows who is who.
    named = named_pictures(copy, [*manifest.kept], manifest.people).named()
    metrics = _metrics(copy, named) if len(named.rows) else {"EER": _nobody(manifest.people)}
    found = {name: Measured.of(value) for name, value in metrics.items()}
    return Verification(people=manifest.people, rows=manifest.live, metrics=found)


def _metrics(copy: LocalCopy, named: NamedPictures) -> dict[str, Value]:
    merged = None
    for start in range(0, len(named.rows), _BLOCK):
        some = slice(start, start + _BLOCK)
        vectors = np.asarray(copy.vectors[named.rows[some]], np.float32)
        names = [str(name) for name in named.names[some]]
        partial = embeddings.partial(vectors, names, named.keys[some], "cosine")
        merged = partial if merged is None else embeddings.merge([merged, partial])
    assert merged is not None  # There is at least one picture.
    return dict(embeddings.result(merged).metrics)


def _nobody(people: str) -> Value:
    where = "lies in a folder" if people == FOLDER else f"has a name in the column {people}"
    return Value(None, reason=f"no picture {where}")
