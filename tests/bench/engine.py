"""End-to-end speed of a map job on real photographs: against its own ceiling and what a user would write.

MobileNetV2 is the hard case: so cheap that reading, decoding and writing weigh as much as the
network. Every figure comes from one run on one machine; compare ratios, not rates.

    python -m tests.bench.engine [MODEL [IMAGES]]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from cnnbatch.job import MapJob
from tests.bench.measuring import (
    CORES,
    SHARED,
    alone,
    photographs,
    show_ceiling,
    stages,
    steady,
)

COUNTS: Mapping[str, int] = {"mobilenet_v2": 10_000, "resnet50": 4_000}
"""How many photographs each model gets: start-up, and finding the fastest way, weigh less in many."""
SMALL_COUNT = 4000
SAMPLE = 320  # photographs on which the stages are measured
BATCH = 16
SHARD, SMALL_SHARD = 500, 100  # A classifier's own is 1,000; this leaves several a worker.
THIS = "tests.bench.engine"


def weights(model: str) -> str:
    """Return the model's weights: real ones where they are there; speed does not depend on them."""
    real = SHARED / "weights" / f"{model}.safetensors"
    return str(real) if real.exists() else "random"


def job(model: str, photos: str, out: str) -> Any:
    """Return the job that is measured."""
    return MapJob.model_validate(
        {
            "task": {"name": "classify", "model": model, "weights": weights(model)},
            "input": {"url": photos, "shard_size": SHARD},
            "output": out,
            "compute": {"pool": "ray", "workers": CORES, "batch": BATCH},
        }
    )


def cnnbatch(model: str, photos: str, out: str) -> dict[str, Any]:
    """Run the job."""
    return steady(job(model, photos, out))


def small_shards(model: str, photos: str, out: str, precision: str, backend: str) -> dict[str, Any]:
    """Run the job with more boundaries between shards, which shows what one of them costs."""
    data = job(model, photos, out).model_dump(mode="json")
    data["input"] |= {"shard_size": SMALL_SHARD, "limit": SMALL_COUNT}
    data["compute"] |= {"precision": precision, "backend": backend}
    return steady(MapJob.model_validate(data))


def dataloader(model: str, photos: str, out: str) -> dict[str, float]:
    """Run what a user writes first: a DataLoader with two workers, fp32, eager, one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from torchvision.models import get_model, get_model_weights

    transform = get_model_weights(model).DEFAULT.transforms()
    paths = sorted(Path(photos).iterdir())

    class Photos(torch.utils.data.Dataset[tuple[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
            return paths[index].name, transform(Image.open(paths[index]).convert("RGB"))

    network = get_model(model).eval()
    keys, labels = [], []
    with torch.inference_mode():
        for names, batch in torch.utils.data.DataLoader(Photos(), BATCH, num_workers=2):
            keys += names
            labels += network(batch).softmax(1).argmax(1).tolist()
    pq.write_table(pa.table({"key": keys, "label": labels}), f"{out}.parquet")
    return {"images": len(keys)}


def ray_data(model: str, photos: str, out: str) -> dict[str, float]:
    """Run the recipe of Ray Data's guide: read_images, map_batches on actors, write_parquet."""
    import numpy as np
    import ray
    import torch
    from torchvision.models import get_model, get_model_weights

    class Classifier:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.model = get_model(model).eval()
            self.transform = get_model_weights(model).DEFAULT.transforms()

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


def main(models: Mapping[str, int]) -> None:
    """Measure each model on its number of photographs and print it."""
    console = Console()
    for model, count in models.items():
        with tempfile.TemporaryDirectory() as folder:
            photos = Path(folder) / "photos"
            photos.mkdir()
            for number, path in enumerate(islice(photographs(), count)):
                shutil.copy(path, photos / f"{number:06}.jpg")
            measure(console, model, str(photos), folder)


def measure(console: Console, model: str, photos: str, folder: str) -> None:
    """Measure one model and print it."""
    spec = job(model, photos, "unused")
    ours = alone(THIS, "cnnbatch", model, photos, f"{folder}/cnnbatch")
    way = ours["settings"]
    alone_before = stages(spec, way, SAMPLE)
    small = alone(THIS, "small_shards", model, photos, f"{folder}/small", way["precision"], way["backend"])
    alone_after = stages(spec, way, SAMPLE)  # Twice: the machine's speed drifts.
    show_ceiling(console, model, [alone_before, alone_after], ours)
    boundary_s = CORES * (1 / small["steady"] - 1 / ours["steady"]) / (1 / SMALL_SHARD - 1 / SHARD)
    console.print(
        f"boundary: {small['steady']:.1f} images/s with {SMALL_SHARD} images a shard instead of {SHARD}: "
        f"the end of a shard costs a worker {1000 * boundary_s:.0f} ms"
    )
    rate = ours["images"] / ours["seconds"]
    console.print(f"whole:   {rate:.1f} images/s, start-up included")
    for name in ("dataloader", "ray_data"):
        rival = alone(THIS, name, model, photos, f"{folder}/{name}")
        theirs = rival["images"] / rival["seconds"]
        console.print(
            f"{name}: {theirs:.1f} images/s, start-up included; cnnbatch is {rate / theirs:.2f} times that"
        )


if __name__ == "__main__":
    contenders: dict[str, Callable[..., Any]] = {
        "cnnbatch": cnnbatch,
        "small_shards": small_shards,
        "dataloader": dataloader,
        "ray_data": ray_data,
    }
    given = sys.argv[1:]
    if given and given[0] in contenders:
        print(json.dumps(contenders[given[0]](*given[1:])))
    else:
        main({given[0]: int(given[1]) if len(given) > 1 else COUNTS[given[0]]} if given else COUNTS)
