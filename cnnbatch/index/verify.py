"""Are two faces of one person? By what an index was calibrated to, else by a published default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.config.output import Which
from cnnbatch.errors import UserError
from cnnbatch.index.calibrated import Calibrated, read_calibrated
from cnnbatch.index.photos import embedded, require_read, require_same, task_of
from cnnbatch.index.search import Index
from cnnbatch.job import load_map_job
from cnnbatch.output.chosen_faces import chosen_faces
from cnnbatch.output.embeddings import EmbeddingSpace, embedding_of_objects, space_of
from cnnbatch.output.reader import Reader, open_output
from cnnbatch.storage import normalize, redact

PUBLISHED: Mapping[str, float] = {"dlib_resnet": 0.6}
"""The Euclidean distances below which networks' publishers call two faces one person's.

dlib's: ``dnn_face_recognition_ex.cpp``, which has it with dlib's weights.
"""


@dataclass(frozen=True, slots=True)
class FoundFace:
    """A face of a photo that has ``faces`` of them: its ``id``, KEY#i, and box (x1, y1, x2, y2) in pixels."""

    photo: str
    id: str
    faces: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Verification:
    """How alike two faces are, and whether they are of one person: ``same`` is None where nothing decides.

    ``similarity`` is the cosine, ``distance`` the Euclidean distance of the embeddings as the network gives
    them. ``probability`` is that of one person where a share ``prior`` of pairs is. ``reason`` is what
    ``same`` rests on, or why it is None.
    """

    first: FoundFace
    second: FoundFace
    similarity: float
    distance: float
    probability: float | None
    prior: float
    same: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class PhotoFaces:
    """The faces of a photo that count, and their embeddings (F, D)."""

    found: Sequence[FoundFace]
    vectors: NDArray[np.float64]


Decided = tuple[float | None, bool | None, str]
"""The probability of one person, whether it is one, and what that rests on; see `Verification`."""
Decide = Callable[[float, float], Decided]


def verify(
    photos: tuple[str, str],
    index: Index | None = None,
    rate: float = 1e-3,
    prior: float = 0.5,
    which: Which = "largest",
) -> Verification:
    """Compare the faces of two photos, of each the one that counts; with ``all`` the two most alike.

    With an ``index`` its network compares them, else that of the job ``faces``. A calibration of the index
    decides, at a false accept ``rate``; without one the published default of the network does. Raises
    UserError for photos that can't be read, or have no face.
    """
    addresses = [normalize(one) for one in photos]
    task = task_of(index.uri, index.manifest) if index else load_map_job("faces", _NOWHERE).task.model_dump()
    with embedded(task, [*dict.fromkeys(addresses)]) as folder:
        require_read(folder)
        rows = _rows(open_output(folder))
        space = _space(rows.schema)
        if index is not None:
            require_same(index.uri, space, index.space)
        faces = {row["uri"]: faces_of(row, row["uri"], which) for row in rows.to_pylist()}
    decide: Decide = partial(_by_default, space, "calibrate an index, and give --index")
    if index is not None:
        calibrated = read_calibrated(index.uri, index.storage, index.manifest.space)
        decide = deciding(index, calibrated, rate, prior)
    one, other = (faces[address] for address in addresses)
    return compared(one, other, prior, decide)


def compared(one: PhotoFaces, other: PhotoFaces, prior: float, decide: Decide) -> Verification:
    """Compare the faces that count of two photos: of several the two that are most alike.

    ``decide`` returns the probability, the decision and what it rests on for a similarity and a distance.
    """
    unit = [each.vectors / np.linalg.norm(each.vectors, axis=1, keepdims=True) for each in (one, other)]
    cosines = unit[0] @ unit[1].T
    first, second = max(product(range(len(one.found)), range(len(other.found))), key=lambda at: cosines[at])
    similarity = float(cosines[first, second])
    distance = float(np.linalg.norm(one.vectors[first] - other.vectors[second]))
    probability, same, reason = decide(similarity, distance)
    return Verification(
        one.found[first], other.found[second], similarity, distance, probability, prior, same, reason
    )


_NOWHERE = ("input=nowhere", "output=nowhere")  # A job has to have both; here others are used.


def _rows(reader: Reader) -> pa.Table:
    """Return what is compared of photos, as far as the job gives it."""
    wanted = ("key", "uri", "width", "height", "objects")
    return reader.arrow([name for name in wanted if name in reader.schema.names])


def _space(schema: pa.Schema) -> EmbeddingSpace:
    field = embedding_of_objects(schema)
    found = None if field is None else space_of(field)
    if found is None:
        raise UserError(
            "photos are compared by the embeddings of their faces, and the job of the index gives none\n"
            "  what to do: give an index of faces; cnnbatch search compares whole pictures"
        )
    return found


def faces_of(row: Mapping[str, Any], photo: str, which: Which) -> PhotoFaces:
    """Return the faces of a photo that count, by its row of predictions; raises UserError without any.

    ``photo`` is what it is called.
    """
    chosen = chosen_faces(row, which)
    if not chosen:
        raise UserError(
            f"no face was found in {redact(photo)}\n"
            "  what to do: give a photo in which the face is larger, sharper, or turned to the camera"
        )
    faces = [
        FoundFace(photo, f"{row['key']}#{number}", len(row["objects"]), tuple(face["box"].values()))
        for number, face in chosen
    ]
    return PhotoFaces(faces, np.array([face["embedding"] for _, face in chosen], np.float64))


def deciding(index: Index, calibrated: Calibrated | None, rate: float, prior: float) -> Decide:
    """Return what decides of two faces: the calibration of an index, else its network's published default."""
    if calibrated is None:
        return partial(
            _by_default, index.space, f"{redact(index.uri)} is not calibrated: give cnnbatch calibrate"
        )
    return partial(by_calibration, calibrated, index.uri, rate, prior)


def by_calibration(
    calibrated: Calibrated | None, index: str, rate: float, prior: float, similarity: float, distance: float
) -> Decided:
    """Decide by what an index, whose address is ``index``, was calibrated to, at a false accept ``rate``.

    Raises UserError for a rate that was not calibrated.
    """
    if calibrated is None:
        return None, None, f"{redact(index)} is not calibrated: give cnnbatch calibrate first"
    probability = float(calibrated.pairs.probabilities([similarity], prior)[0])
    threshold = calibrated.pairs.threshold(rate)
    if threshold.similarity is None:
        return probability, None, str(threshold.reason)
    reason = f"the threshold at a false accept rate of {rate:g} is a similarity of {threshold.similarity:.4f}"
    if threshold.low is not None and threshold.high is not None:
        reason += f" ({threshold.low:.4f} to {threshold.high:.4f})"
    return probability, similarity >= threshold.similarity, reason


def _by_default(space: EmbeddingSpace, way_out: str, similarity: float, distance: float) -> Decided:
    """Decide by what the publisher of a network says; ``way_out`` says how to know more."""
    if space.network not in PUBLISHED:
        return None, None, f"{space.network} has no published threshold; {way_out}"
    limit = PUBLISHED[space.network]
    default = f"the published default of {space.network} is a distance below {limit:g}"
    return None, distance < limit, f"{default}, whose error rates on such photos are not known; {way_out}"
