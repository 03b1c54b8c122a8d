"""Output folders as the engine leaves them, made without it: parts, footers and the job."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cnnbatch.output.part import ENGINE_COLUMNS

GUESSES = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))
CLASSIFIED = pa.schema([*ENGINE_COLUMNS, ("label", pa.string()), ("score", pa.float32()), ("top", GUESSES)])
START = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
STAGES = {"read": 0.004, "decode": 0.012, "prepare": 0.005, "forward": 0.021, "rows": 0.0006, "write": 0.0004}
JOB = """\
kind: map
task: {name: classify, model: timm/tf_efficientnet_lite0, weights: DEFAULT, top_k: 5}
input: {url: %s, format: auto, limit: null}
compute: {device: auto, workers: 2, precision: auto}
output: {url: %s}
max_failed: 0.01
"""


@dataclass(frozen=True)
class Part:
    """Where, when and how one part of a made output was computed."""

    begin_s: float = 0.0
    seconds: float = 1.0
    host: str = "one"
    device: str = "cuda:0"
    worker: int = 1
    precision: str = "fp32"
    backend: str = "eager"


def good(key: str, uri: str | Path, guesses: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Return the row of a classified image."""
    top = [{"label": label, "score": score} for label, score in guesses]
    size = {"bytes": 1000, "width": 640, "height": 480}
    return {"key": key, "uri": str(uri), "etag": "e", "vanished": False, "top": top, **size, **top[0]}


def bad(key: str, code: str, message: str, stage: str = "decode") -> dict[str, Any]:
    """Return the row of an image that failed."""
    error = {"stage": stage, "code": code, "message": message}
    return {"key": key, "uri": f"/gone/{key}", "vanished": False, "error": error}


def write_part(
    folder: Path,
    index: int,
    rows: Sequence[dict[str, Any]],
    part: Part = Part(),
    schema: pa.Schema = CLASSIFIED,  # noqa: B008
) -> Path:
    """Write one part with its footer, in row groups of 1,000."""
    codes = [row["error"]["code"] for row in rows if row.get("error")]
    footer = {
        "fingerprint": "f" * 64,
        "digest": "d" * 64,
        "versions": {"cnnbatch": "0.1.0", "torch": "2.12.0", "torchvision": "0.27.0", "pillow": "12.0.0"},
        "weights": "57934424c5a2cd5ae3ac2c5b9bdf1d8ab3ac3b6b7a1f1f1d11d0a4e6ec0fbb6d",
        "precision": part.precision,
        "backend": part.backend,
        "device": part.device,
        "receipt": {
            "shard": index,
            "rows": len(rows),
            "failed": {code: codes.count(code) for code in sorted(set(codes))},
            "seconds": {stage: cost * len(rows) for stage, cost in STAGES.items()},
        },
        "started": (START + timedelta(seconds=part.begin_s)).isoformat(),
        "finished": (START + timedelta(seconds=part.begin_s + part.seconds)).isoformat(),
        "host": part.host,
        "worker": part.worker,
    }
    path = folder / "predictions" / f"part-{index:08}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        writer.write_table(pa.Table.from_pylist(list(rows), schema), row_group_size=1000)
        writer.add_key_value_metadata({"cnnbatch": json.dumps(footer)})
    return path


def write_job(folder: Path, source: str = "photos", text: str = JOB) -> None:
    """Write the job beside the parts."""
    path = folder / "_job" / "job.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text % (source, folder))


def write_settings(
    folder: Path, device: str, trials: Sequence[dict[str, Any]], operators_on_cpu: Sequence[str] = ()
) -> None:
    """Write what was measured on a kind of device, as `cnnbatch.inference.autotune.store` keeps it."""
    names = ("precision", "backend", "batch", "tf32")
    chosen = next((trial for trial in trials if trial["verdict"] == "chosen"), {"precision": "fp32"})
    settings = {"device": device, "threads": 1, **{name: chosen.get(name) for name in names}}
    path = folder / "_job" / "settings" / f"{device.replace(':', '-')}-{chosen['precision']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**settings, "trials": list(trials), "operators_on_cpu": list(operators_on_cpu)}
    path.write_text(json.dumps(record))


def write_output(folder: Path, parts: Iterable[Sequence[dict[str, Any]]]) -> Path:
    """Write a whole output, one part after the other, and return its folder."""
    write_job(folder)
    for index, rows in enumerate(parts):
        write_part(folder, index, rows, Part(begin_s=2.0 * index, seconds=2.0, worker=index % 2))
    return folder


def real_photos() -> list[Path]:
    """Return photographs that installed packages ship, or skip."""
    places = [
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/rocket.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ]
    found = []
    for package, inside in places:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            pytest.skip(f"{package} is not installed, which ships the photographs")
        found.append(Path(spec.origin).parent / inside)
    return found
