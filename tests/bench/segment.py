"""End-to-end speed of segmentation, against the ceiling of its stages and a plain loop; how large maps are.

The loop is what most write first: torchvision's network and preset, eager, in float32, on all cores, and a
PNG file a picture. Weights are random, since speed does not depend on them; the maps whose size is told are
CamVid's.

    python -m tests.bench.segment [MODEL [IMAGES]]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measuring import CORES, SHARED, alone, photographs, show_ceiling, stages, steady

COUNTS: Mapping[str, int] = {"lraspp_mobilenet_v3_large": 1_000, "fcn_resnet50": 240}
"""Photographs of each model: enough for the fastest way to be looked for."""
SAMPLE = 48  # photographs on which the stages are measured
LOOP = 16  # photographs of the loop, after one that warms up
SHARD = 40
THIS = "tests.bench.segment"
TILED = "pyramid_mobilenet_v2"


def job(model: str, photos: str, out: str) -> Any:
    """Return the job that is measured; the shorter side has 520 pixels, as torchvision's preset has it."""
    from cnnbatch.job import MapJob

    return MapJob.model_validate(
        {
            "task": {"name": "segment", "model": model, "weights": "random", "size": 520},
            "input": {"url": photos, "shard_size": SHARD},
            "output": out,
            "compute": {"pool": "local", "workers": CORES},
        }
    )


def loop(model: str, photos: str, out: str) -> dict[str, float]:
    """Run the plain loop; return its images a second."""
    import torch
    from PIL import Image
    from torch.nn.functional import interpolate
    from torchvision.models import get_model, get_model_weights

    network = get_model(model, weights=None, weights_backbone=None).eval()
    preset = get_model_weights(model)["DEFAULT"].transforms()
    torch.set_num_threads(CORES)
    Path(out).mkdir()
    paths = sorted(Path(photos).iterdir())[: LOOP + 1]
    started = time.monotonic()
    with torch.inference_mode():
        for number, path in enumerate(paths):
            if number == 1:
                started = time.monotonic()
            picture = Image.open(path).convert("RGB")
            logits = network(preset(picture)[None])["out"]
            whole = interpolate(logits, size=picture.size[::-1], mode="bilinear", align_corners=False)
            numbers = whole[0].argmax(0).to(torch.uint8).numpy()
            Image.fromarray(numbers).save(f"{out}/{path.stem}.png")
    return {"rate": (len(paths) - 1) / (time.monotonic() - started)}


def measure(console: Console, model: str, count: int) -> None:
    """Measure one model and print it."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number, path in enumerate(islice(photographs(("coco-sample",)), count)):
            shutil.copy(path, photos / f"{number:06}.jpg")
        ours = alone(THIS, "steady", model, str(photos), f"{folder}/out")
        rival = alone(THIS, "loop", model, str(photos), f"{folder}/loop")
        found = stages(job(model, str(photos), "unused"), ours["settings"], SAMPLE)
        show_ceiling(console, model, [found], ours)
        times = ours["steady"] / rival["rate"]
        console.print(f"loop:    {rival['rate']:.2f} images/s; cnnbatch is {times:.2f} times that")


def sizes(console: Console) -> None:
    """Print how large CamVid's maps are in Parquet, by each encoding, beside the same maps as PNG files."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from cnnbatch.images.class_map import png, runs
    from cnnbatch.truth import MAP, MAP_RUNS

    paths = sorted((SHARED / "data" / "camvid").rglob("*annot/*.png"))
    if not paths:
        console.print("maps:    CamVid does not lie beside the checkout")
        return
    maps = [np.asarray(Image.open(path)).astype(np.uint8) for path in paths]
    files = [png(one) for one in maps]
    encoded = {
        "png": pa.array(files, MAP),
        "rle": pa.array([runs(one, 12) for one in maps], MAP_RUNS),
    }
    table = Table("maps", "bytes a map", "of PNG files", title=f"{len(maps)} maps of CamVid")
    with tempfile.TemporaryDirectory() as folder:
        total = sum(map(len, files))
        table.add_row("PNG files", f"{total / len(maps):.0f}", "100%")
        for name, column in encoded.items():
            part = Path(folder) / f"{name}.parquet"
            pq.write_table(pa.table({"map": column}), part, compression="zstd")
            size = part.stat().st_size
            table.add_row(f"Parquet, {name}", f"{size / len(maps):.0f}", f"{size / total:.0%}")
    console.print(table)


def peak(model: str, side: str, tile: str) -> dict[str, float]:
    """Segment one square picture; return what the process took at most beyond its start, in MB."""
    import resource

    import torch

    from cnnbatch.tasks.segment import Segment
    from cnnbatch.types import Image, ImageRef, Runtime

    torch.set_num_threads(CORES)
    classes = tuple(f"class {number}" for number in range(12))
    task = Segment(model=model, weights="random", classes=classes, tile=int(tile) or None, size="own")
    network = task.load(Runtime("cpu"))
    pixels = torch.zeros((int(side), int(side), 3), dtype=torch.uint8).permute(2, 0, 1)
    image = Image(ImageRef("a", "a"), pixels, (int(side), int(side)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (prepared,) = network.prepare(image)
    network.forward(prepared.pixels[None], torch.tensor([prepared.sizes]))
    return {"peak": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000}


def memory(console: Console) -> None:
    """Print what large pictures take whole and in tiles."""
    table = Table("picture", "its bytes, MB", "tiles", "peak beyond the start, MB", title=f"memory, {TILED}")
    for side, tile in ((2048, 0), (2048, 512), (8192, 512)):
        found = alone(THIS, "peak", TILED, str(side), str(tile))["peak"]
        table.add_row(f"{side} x {side}", f"{3 * side * side / 1e6:.0f}", str(tile or "none"), f"{found:.0f}")
    console.print(table)


def main(counts: Mapping[str, int] = COUNTS) -> None:
    """Measure each model on its number of photographs, and the maps."""
    console = Console()
    for model, count in counts.items():
        measure(console, model, count)
    sizes(console)
    memory(console)


if __name__ == "__main__":
    parts: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
        "steady": lambda model, photos, out: steady(job(model, photos, out)),
        "loop": loop,
        "peak": peak,
    }
    given = sys.argv[1:]
    if given and given[0] in parts:
        print(json.dumps(parts[given[0]](*given[1:])))
    elif given:
        main({given[0]: int(given[1]) if len(given) > 1 else COUNTS[given[0]]})
    else:
        main()
