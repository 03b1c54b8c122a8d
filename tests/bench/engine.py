"""End-to-end speed of a map job on real photographs: against its own ceiling and what a user would write.

MobileNetV2 is the hard case: so cheap that reading, decoding and writing weigh as much as the
network. Every figure comes from one run on one machine; compare ratios, not rates.

    python tests/bench/engine.py [IMAGES]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
SETS = ("pets", "camvid", "blood-cells", "imagenet-sample", "coco-sample", "raccoon", "lfw")
MODEL = "mobilenet_v2"
COUNT = 4000
BATCH = 16
SHARD, SMALL_SHARD = 500, 100  # A classifier's own is 1,000; this leaves several a worker.
CORES = os.cpu_count() or 1


def photographs() -> Iterator[Path]:
    """Yield real photographs again and again: those beside the checkout, else those of installed packages."""
    found = [path for name in SETS for path in sorted((SHARED / "data" / name).rglob("*.jpg"))]
    if found:
        return cycle(found)
    import skimage
    import sklearn

    shipped = [
        *Path(skimage.__file__).parent.glob("data/*.jp*g"),
        *Path(sklearn.__file__).parent.glob("datasets/images/*.jpg"),
    ]
    return cycle(shipped)


def weights() -> str:
    """Return the model's weights: real ones where they are there; speed does not depend on them."""
    real = SHARED / "weights" / f"{MODEL}.safetensors"
    return str(real) if real.exists() else "random"


def job(photos: str, out: str, shard: int = SHARD) -> Any:
    """Return the job that is measured, with ``shard`` images in a part."""
    from cnnbatch.job import MapJob

    return MapJob.model_validate(
        {
            "task": {"name": "classify", "model": MODEL, "weights": weights()},
            "input": {"url": photos, "shard_size": shard},
            "output": out,
            "compute": {"pool": "ray", "workers": CORES, "batch": BATCH},
        }
    )


def stages(photos: str) -> dict[str, float]:
    """Return processor seconds an image of every stage, each alone on one thread.

    Run by as many processes as there are cores, at once: cores share caches and memory, and what one
    of them does alone is no ceiling for all.
    """
    import pyarrow as pa
    import torch

    from cnnbatch.decode import decode
    from cnnbatch.records import Image, ImageRef
    from cnnbatch.sink import Outcome, PartSpool, part_rows, part_schema
    from cnnbatch.speed import choose, keep_freed_memory
    from cnnbatch.worker import _split, _stack

    keep_freed_memory()
    torch.set_num_threads(1)
    spec = job(photos, "unused")
    settings = choose(spec, 1000, False, None)
    model = spec.task.load(settings.runtime())
    every = sorted(Path(photos).iterdir())
    paths = every[:: max(1, len(every) // 320)]  # From all over: the sets differ in size.
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], list[Any]]) -> list[Any]:
        work()  # Once unmeasured: caches, allocators, kernels.
        started = time.process_time()
        result = work()
        seconds[stage] = (time.process_time() - started) / len(paths)
        return result

    data = timed("read", lambda: [path.read_bytes() for path in paths])
    pixels = timed("decode", lambda: [decode(one, model.decode_size) for one in data])
    images = [
        Image(ImageRef(path.name, str(path)), one, size)
        for path, (one, size) in zip(paths, pixels, strict=True)
    ]
    prepared = timed("prepare", lambda: [model.prepare(image) for image in images])
    batches = [prepared[start : start + BATCH] for start in range(0, len(prepared), BATCH)]

    def forward() -> list[Any]:
        found = []
        with torch.inference_mode():
            for batch in batches:
                stacked = _stack([one[0] for one in batch])
                found += _split(model.forward(stacked, torch.tensor([one[0].size for one in batch])))
        return found

    outputs = timed("forward", forward)
    schema = part_schema(pa.schema([]), (), spec.task.columns())

    def rows() -> list[Any]:
        task_rows = model.rows(images, prepared, [[output] for output in outputs])
        return [part_rows([Outcome(image.ref) for image in images], task_rows, schema)]

    made = timed("rows", rows)

    def write() -> list[Any]:
        with PartSpool(schema) as spool:
            spool.write(made[0])
            return [spool.finish({})]

    timed("write", write)
    return {**seconds, "precision": settings.precision}  # type: ignore[dict-item]


def cnnbatch(photos: str, out: str, shard: int = SHARD) -> dict[str, float]:
    """Run the job; return its steady rate: that of the time in which all workers are at work."""
    from datetime import datetime

    from cnnbatch.output import Output
    from cnnbatch.run import RunOptions, run
    from cnnbatch.storage import Storage

    summary = run(job(photos, out, shard), RunOptions(quiet=True))
    output = Output(out, Storage())
    footers = [output.footer(index) for index in sorted(output.finished())]
    ends: dict[int, list[tuple[float, int]]] = {}
    for footer in footers:
        ended = datetime.fromisoformat(footer["finished"]).timestamp()
        ends.setdefault(footer["worker"], []).append((ended, footer["receipt"]["rows"]))
    # From when every worker has finished its first shard (it warmed up in it) to when one has no more.
    since, until = max(min(own)[0] for own in ends.values()), min(max(own)[0] for own in ends.values())
    done = 0.0
    for own in ends.values():  # A worker predicts its shards one after the other.
        for (start, _), (end, rows) in pairwise(sorted(own)):
            done += rows * max(0.0, min(end, until) - max(start, since)) / (end - start)
    return {"images": summary.images, "steady": done / (until - since)}


def small_shards(photos: str, out: str) -> dict[str, float]:
    """Run the job with more boundaries between shards, which shows what one of them costs."""
    return cnnbatch(photos, out, SMALL_SHARD)


def dataloader(photos: str, out: str) -> dict[str, float]:
    """Run what a user writes first: a DataLoader with two workers, fp32, eager, one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    transform = MobileNet_V2_Weights.DEFAULT.transforms()
    paths = sorted(Path(photos).iterdir())

    class Photos(torch.utils.data.Dataset[tuple[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
            return paths[index].name, transform(Image.open(paths[index]).convert("RGB"))

    model = mobilenet_v2().eval()
    keys, labels = [], []
    with torch.inference_mode():
        for names, batch in torch.utils.data.DataLoader(Photos(), BATCH, num_workers=2):
            keys += names
            labels += model(batch).softmax(1).argmax(1).tolist()
    pq.write_table(pa.table({"key": keys, "label": labels}), f"{out}.parquet")
    return {"images": len(keys)}


def ray_data(photos: str, out: str) -> dict[str, float]:
    """Run the recipe of Ray Data's guide: read_images, map_batches on actors, write_parquet."""
    import numpy as np
    import ray
    import torch
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    class Classifier:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.model = mobilenet_v2().eval()
            self.transform = MobileNet_V2_Weights.DEFAULT.transforms()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            pictures = [torch.as_tensor(np.array(image)).permute(2, 0, 1) for image in batch["image"]]
            with torch.inference_mode():
                labels = self.model(torch.stack([self.transform(one) for one in pictures])).argmax(1)
            return {"path": batch["path"], "label": labels.numpy()}

    # Twice the cores: with as many slots as actors its reading tasks never get one, and it waits for ever.
    ray.init(address="local", num_cpus=2 * CORES, include_dashboard=False, log_to_driver=False)
    images = ray.data.read_images(photos, include_paths=True, mode="RGB")
    images.map_batches(
        Classifier, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=CORES)
    ).write_parquet(out)
    return {"images": len(os.listdir(photos))}


def measured(name: str, photos: str, out: str) -> dict[str, Any]:
    """Run one contender in a process of its own; return what it says and its wall time, start-up included."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, name, photos, out], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.monotonic() - started}


def measured_stages(photos: str) -> list[dict[str, Any]]:
    """Return what every core says of the stages, all of them at it at once."""
    with ThreadPoolExecutor(CORES) as threads:
        return list(threads.map(lambda _: measured("stages", photos, ""), range(CORES)))


def main(count: int) -> None:
    """Measure everything on ``count`` photographs and print it."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number, path in enumerate(islice(photographs(), count)):
            shutil.copy(path, photos / f"{number:06}.jpg")
        every = measured_stages(str(photos))
        ours = measured("cnnbatch", str(photos), f"{folder}/cnnbatch")
        every += measured_stages(str(photos))  # Before and after: the machine's speed drifts.
        small = measured("small_shards", str(photos), f"{folder}/small")
        rivals = {
            name: measured(name, str(photos), f"{folder}/{name}") for name in ("dataloader", "ray_data")
        }
    steps = ("read", "decode", "prepare", "forward", "rows", "write")
    cost = {stage: sum(core[stage] for core in every) / len(every) for stage in steps}
    ceiling = CORES / sum(cost.values())
    table = Table(
        "stage", "CPU ms an image", title=f"{MODEL}, {every[0]['precision']}, {ours['images']} photographs"
    )
    for stage, seconds in cost.items():
        table.add_row(stage, f"{1000 * seconds:.2f}")
    console.print(table)
    console.print(f"ceiling: {ceiling:.1f} images/s ({CORES} cores over the sum of the stages)")
    console.print(f"steady:  {ours['steady']:.1f} images/s = {ours['steady'] / ceiling:.0%} of the ceiling")
    boundary_s = CORES * (1 / small["steady"] - 1 / ours["steady"]) / (1 / SMALL_SHARD - 1 / SHARD)
    console.print(
        f"boundary: {small['steady']:.1f} images/s with {SMALL_SHARD} images a shard instead of {SHARD}: "
        f"the end of a shard costs a worker {1000 * boundary_s:.0f} ms"
    )
    rate = ours["images"] / ours["seconds"]
    console.print(f"whole:   {rate:.1f} images/s, start-up included")
    for name, rival in rivals.items():
        theirs = rival["images"] / rival["seconds"]
        console.print(
            f"{name}: {theirs:.1f} images/s, start-up included; cnnbatch is {rate / theirs:.2f} times that"
        )


if __name__ == "__main__":
    contenders = {
        "cnnbatch": cnnbatch,
        "small_shards": small_shards,
        "dataloader": dataloader,
        "ray_data": ray_data,
    }
    if len(sys.argv) > 2:
        name, photos, out = sys.argv[1:]
        print(json.dumps(stages(photos) if name == "stages" else contenders[name](photos, out)))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
