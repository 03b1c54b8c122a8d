"""Outputs with maps of classes, and with segments, beside their truth: made, as the engine leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from cnnbatch import truth
from cnnbatch.images import class_map
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.truth import Class
from cnnbatch.truth.classes import ModelClasses
from tests.outputs import Part, write_job, write_part

JOB = """\
kind: map
task: {name: segment, model: %s}
input: {url: %%s, format: auto, keep: [camera]}
output: {url: %%s}
"""
Map = NDArray[Any]
Row = dict[str, Any]
ENCODINGS: dict[str, pa.DataType] = {"png": truth.MAP, "rle": truth.MAP_RUNS, "asset": pa.string()}
UNCERTAIN = pa.list_(pa.struct([("score", pa.float32()), ("box", truth.BOX)]))
SEGMENT = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float32()),
        ("box", truth.BOX),
        ("mask", truth.MASK),
        ("is_thing", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Maps:
    """What is written of maps: the ``model``'s names, the truth's classes, and how maps are encoded."""

    model: Sequence[str]
    classes: Sequence[Class]
    ignored: Sequence[int] = (255,)
    encoding: str = "png"
    parts: int = 2
    name: str = "fcn"
    photos: Path | None = None
    uncertain: Mapping[int, Sequence[Row]] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        metadata = {"asset": "png"} if self.encoding == "asset" else None
        more = [("uncertain", UNCERTAIN)] if self.uncertain else []
        return pa.schema(
            [
                *ENGINE_COLUMNS,
                ("camera", pa.string()),
                pa.field("map", ENCODINGS[self.encoding], metadata=metadata),
                ("map_classes", truth.MAP_CLASSES),
                ("confidence", pa.float32()),
                *more,
            ]
        )


def write_maps(folder: Path, predicted: Sequence[Map | None], true: Sequence[Map | None], how: Maps) -> Path:
    """Write an output of maps and its truth; of an image that failed the map is None. Return its folder."""
    _begin(folder, how.name, how.photos, how.model)
    schema = truth.with_ignored(truth.with_classes(truth.MAP_SCHEMA, how.classes), how.ignored)
    rows = [_map_row(folder, place, said, how) for place, said in enumerate(predicted)]
    truths = [
        {
            "image_id": str(place),
            "map": None if one is None else class_map.png(one),
            "width": None if one is None else one.shape[1],
            "height": None if one is None else one.shape[0],
        }
        for place, one in enumerate(true)
    ]
    _write(folder, rows, truths, how.schema, schema, how.parts)
    return folder


def _map_row(folder: Path, place: int, said: Map | None, how: Maps) -> Row:
    row = _row(place, None if said is None else said.shape, how.photos)
    if said is None:
        return row
    counts = np.bincount(said.ravel(), minlength=len(how.model))[: len(how.model)]
    shares = [
        {"label": name, "pixels": int(count), "share": count / said.size}
        for name, count in zip(how.model, counts.tolist(), strict=True)
        if count
    ]
    shares.sort(key=lambda one: -one["pixels"])
    confidence = 0.5 + place % 10 / 20
    row |= {"map_classes": shares, "confidence": confidence, "uncertain": how.uncertain.get(place, [])}
    return row | {"map": _encoded(folder, place, said, how)}


def _encoded(folder: Path, place: int, said: Map, how: Maps) -> Any:
    if how.encoding == "rle":
        return class_map.runs(said, len(how.model))
    data = class_map.png(said)
    if how.encoding == "png":
        return data
    path = asset(folder, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.relative_to(folder).as_posix()


def asset(folder: Path, place: int) -> Path:
    """Return where the map of an image lies that is an asset."""
    return folder / "assets" / "map" / "part-00000000" / f"{place:08}-{place:016x}.png"


@dataclass(frozen=True)
class Segment:
    """An object of a panoptic picture; ``runs`` are written instead of those of its mask."""

    label: str
    inside: NDArray[np.bool_]
    is_thing: bool | None
    score: float | None = None
    crowd: bool = False
    runs: str | None = None

    def row(self) -> Row:
        mask = rle.encode(np.asfortranarray(self.inside, np.uint8))
        runs = mask["counts"].decode() if self.runs is None else self.runs
        x, y, width, height = rle.toBbox(mask).tolist()
        return {
            "label": self.label,
            "score": self.score,
            "box": {"x1": x, "y1": y, "x2": x + width, "y2": y + height},
            "mask": {"size": list(self.inside.shape), "counts": runs},
            "is_thing": self.is_thing,
            "crowd": self.crowd,
            "area": float(self.inside.sum()),
        }


def write_segments(
    folder: Path,
    predicted: Sequence[Sequence[Segment] | None],
    true: Sequence[Sequence[Segment]],
    model: Sequence[str],
    photos: Path | None = None,
    parts: int = 2,
) -> Path:
    """Write an output of panoptic segments and its truth; return its folder."""
    _begin(folder, "panoptic", photos, model)
    classes = [Class(name, number) for number, name in enumerate(model)]
    rows = []
    for place, said in enumerate(predicted):
        size = next((one.inside.shape for one in [*(said or []), *true[place]]), (48, 64))
        rows.append(_row(place, None if said is None else size, photos))
        rows[-1]["objects"] = None if said is None else [one.row() for one in said]
    truths = [
        {"image_id": str(place), "objects": [one.row() for one in some]} for place, some in enumerate(true)
    ]
    schema = pa.schema([*ENGINE_COLUMNS, ("camera", pa.string()), ("objects", pa.list_(SEGMENT))])
    _write(folder, rows, truths, schema, truth.with_classes(truth.OBJECTS_SCHEMA, classes), parts)
    return folder


def _begin(folder: Path, name: str, photos: Path | None, model: Sequence[str]) -> None:
    write_job(folder, str(photos or folder.parent / "photos"), JOB % name)
    (folder / "_job" / "classes.json").write_text(json.dumps(asdict(ModelClasses(tuple(model)))))
    (folder / "_job" / "truth").mkdir()


def _row(place: int, size: Sequence[int] | None, photos: Path | None) -> Row:
    key = f"{place:03}.jpg"
    error = None if size else {"stage": "decode", "code": "truncated", "message": "made so"}
    return {
        "key": key,
        "uri": str((photos or Path("/gone")) / key),
        "etag": "e",
        "bytes": 1000,
        "width": size[1] if size else None,
        "height": size[0] if size else None,
        "error": error,
        "vanished": False,
        "camera": ("left", "right")[place % 2],
    }


def _write(
    folder: Path, rows: Sequence[Row], truths: Sequence[Row], schema: pa.Schema, known: pa.Schema, parts: int
) -> None:
    size = -(-len(rows) // parts)
    for index in range(parts):
        some = slice(index * size, (index + 1) * size)
        write_part(folder, index, rows[some], Part(), schema)
        pq.write_table(
            truth.table(truths[some], known), folder / "_job" / "truth" / f"part-{index:08}.parquet"
        )


def blocks(seed: int, classes: int, size: tuple[int, int] = (48, 64), coarse: int = 6) -> NDArray[np.uint8]:
    """Return a made map of coarse blocks."""
    small = np.random.default_rng(seed).integers(0, classes, (coarse, coarse), np.uint8)
    rows, columns = (np.arange(side) * coarse // side for side in size)
    made: NDArray[np.uint8] = small[np.ix_(rows, columns)]
    return made


def photograph(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write a small picture of (height, width)."""
    coarse = np.random.default_rng(seed).integers(60, 220, (5, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)
