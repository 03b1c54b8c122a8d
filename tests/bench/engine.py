"""End-to-end speed of a map job on real photographs: against its own ceiling and what a user would write.

MobileNetV2 is the hard case: so cheap that reading, decoding and writing weigh as much as the
network. Every figure comes from one run on one machine; compare ratios, not rates.

    python -m tests.bench.engine [IMAGES]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.measuring import (
    CORES,
    SHARED,
    alone,
    on_every_core,
    photographs,
    show_ceiling,
    stages,
    steady,
)

MODEL = "mobilenet_v2"
COUNT = 4000
SAMPLE = 320  # photographs on which the stages are measured
BATCH = 16
SHARD, SMALL_SHARD = 500, 100  # A classifier's own is 1,000; this leaves several a worker.
THIS = "tests.bench.engine"


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


def cnnbatch(photos: str, out: str) -> dict[str, float]:
    """Run the job."""
    return steady(job(photos, out))


def small_shards(photos: str, out: str) -> dict[str, float]:
    """Run the job with more boundaries between shards, which shows what one of them costs."""
    return steady(job(photos, out, SMALL_SHARD))


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


def main(count: int = COUNT) -> None:
    """Measure everything on ``count`` photographs and print it."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number, path in enumerate(islice(photographs(), count)):
            shutil.copy(path, photos / f"{number:06}.jpg")
        every = on_every_core(THIS, "stages", str(photos), "")
        ours = alone(THIS, "cnnbatch", str(photos), f"{folder}/cnnbatch")
        every += on_every_core(
            THIS, "stages", str(photos), ""
        )  # Before and after: the machine's speed drifts.
        small = alone(THIS, "small_shards", str(photos), f"{folder}/small")
        rivals = {
            name: alone(THIS, name, str(photos), f"{folder}/{name}") for name in ("dataloader", "ray_data")
        }
    show_ceiling(console, MODEL, every, ours)
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
        "stages": lambda photos, out: stages(job(photos, out or "unused"), photos, SAMPLE),
        "cnnbatch": cnnbatch,
        "small_shards": small_shards,
        "dataloader": dataloader,
        "ray_data": ray_data,
    }
    if len(sys.argv) > 2:
        name, photos, out = sys.argv[1:]
        print(json.dumps(contenders[name](photos, out)))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
