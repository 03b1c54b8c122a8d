"""What sources cost: a COCO file of the largest usual size, and one set of small images in three forms.

The COCO file is made and read in processes of their own, so that its peak is the reader's alone. The
images are read as workers read them, in shards of 500 by 16 threads; they stay in the page cache, so what
differs is the work of each form and not the disk.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from cnnbatch.config.input import Input
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.types import Shard

IMAGES, OBJECTS = 120_000, 900_000
PHOTOS, SHARD, THREADS, GROUP, ROUNDS = 2000, 500, 16, 100, 3

READER = """
import json, sys, time
from cnnbatch.config.input import Input
from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
before = peak_rss_bytes()
started = time.monotonic()
refs = open_source(Input(url=sys.argv[1]), Storage()).refs()
count, size = 1, len(next(refs).columns["truth"])
first = time.monotonic() - started
for ref in refs:
    count, size = count + 1, size + len(ref.columns["truth"])
print(json.dumps({"images": count, "first_s": first, "whole_s": time.monotonic() - started,
                  "truth_bytes": size, "start_bytes": before, "peak_bytes": peak_rss_bytes()}))
"""


def write_coco(path: Path, images: int, objects: int) -> None:
    """Write a seeded file line by line: each object a box and a polygon of 20 points."""
    rng = random.Random(0)
    with path.open("w") as file:
        file.write('{"images": [')
        for number in range(images):
            one = {"id": number, "file_name": f"{number:012}.jpg", "width": 640, "height": 480}
            file.write((", " if number else "") + json.dumps(one))
        file.write('], "annotations": [')
        for number in range(objects):
            box = [round(rng.random() * 300 + 1, 2) for _ in range(4)]
            polygon = [round(rng.random() * 480, 2) for _ in range(40)]
            fields = {"image_id": rng.randrange(images), "category_id": rng.randrange(80), "bbox": box}
            shape = {"area": box[2] * box[3], "iscrowd": 0, "segmentation": [polygon]}
            file.write((", " if number else "") + json.dumps({"id": number, **fields, **shape}))
        file.write('], "categories": ')
        file.write(json.dumps([{"id": number, "name": f"class {number}"} for number in range(80)]) + "}")
    (path.parent / f"{0:012}.jpg").touch()


def read_coco(path: Path) -> dict[str, float]:
    """Stream all refs of a COCO file in a process of its own; return what it took."""
    done = subprocess.run([sys.executable, "-c", READER, path], capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def photo(seed: int) -> bytes:
    """Return a JPEG of about 30 kB: a gradient with noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((320, 240))
    noise = rng.integers(-20, 20, (240, 320, 1))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(
        buffer, "JPEG", quality=87
    )
    return buffer.getvalue()


def write_photos(root: Path, count: int) -> dict[str, str]:
    """Write the same images as files, as one tar and as one Parquet file; return the address of each."""
    photos = {f"{number:06}.jpg": photo(number) for number in range(count)}
    (root / "photos").mkdir()
    with tarfile.open(root / "photos.tar", "w") as tar:
        for name, data in photos.items():
            (root / "photos" / name).write_bytes(data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    columns = {"image": list(photos.values()), "name": list(photos)}
    pq.write_table(pa.table(columns), root / "photos.parquet", row_group_size=GROUP)
    names = {"files": "photos", "tar": "photos.tar", "Parquet": "photos.parquet"}
    return {form: str(root / name) for form, name in names.items()}


def read_all(url: str) -> tuple[int, int]:
    """List a source and read every byte of it, shard by shard; return the images and the bytes."""
    source = open_source(Input(url=url), Storage())
    refs, images, size = source.refs(), 0, 0
    with ThreadPoolExecutor(THREADS) as threads:
        while some := tuple(islice(refs, SHARD)):
            for content in threads.map(lambda reader: reader(), source.read(Shard(0, some))):
                if not isinstance(content, bytes):
                    raise RuntimeError(f"an image was not read: {content}")
                images, size = images + 1, size + len(content)
    return images, size


def fastest(url: str) -> tuple[float, int]:
    """Return the best images a second of three rounds, and the bytes read."""
    rates, size = [], 0
    for _ in range(ROUNDS):
        started = time.monotonic()
        images, size = read_all(url)
        rates.append(images / (time.monotonic() - started))
    return max(rates), size


def main(images: int = IMAGES, objects: int = OBJECTS, photos: int = PHOTOS) -> None:
    """Print what each costs."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        write_coco(path, images, objects)
        took = read_coco(path)
        console.print(
            f"COCO, {took['images']:,} images, {objects:,} objects, {path.stat().st_size / 1e6:,.0f} MB: "
            f"first image after {took['first_s']:.1f} s, all after {took['whole_s']:.1f} s; "
            f"their truth: {took['truth_bytes'] / 1e6:,.0f} MB; peak {took['peak_bytes'] / 2**20:,.0f} MiB, "
            f"of them {took['start_bytes'] / 2**20:,.0f} before it was opened"
        )
    with tempfile.TemporaryDirectory() as folder:
        urls = write_photos(Path(folder), photos)
        found = {form: fastest(url) for form, url in urls.items()}
    files = found["files"][0]
    for form, (rate, size) in found.items():
        what = f"{photos:,} images of {size / photos / 1000:.0f} kB as {form}"
        console.print(f"{what}: {rate:,.0f} images/s, {rate / files:.2f} of files")


if __name__ == "__main__":
    main()
