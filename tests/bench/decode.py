"""Compare the JPEG decoders on real photographs: milliseconds an image, and what a second thread brings.

All figures come from one run, so read the ratios; `python tests/bench/decode.py` from the checkout.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.io import ImageReadMode, decode_jpeg

from cnnbatch.images.decode import decode

Decoder = Callable[[bytes], object]

DATA = Path(__file__).parents[3] / "shared" / "data"
SETS = {
    "ImageNet, short side 256": "imagenet-sample/images/*",
    "COCO, 640 x 480": "coco-sample/**/*.jpg",
    "large photographs": "style/**/*.jpg",
}
PACKAGES = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
ROUNDS, MOST_IMAGES = 5, 100


def photographs() -> dict[str, list[bytes]]:
    """Return sets of JPEG files: those beside the checkout, else those that installed packages ship."""
    if DATA.is_dir():
        found = {name: sorted(DATA.glob(pattern)) for name, pattern in SETS.items()}
    else:
        folders = [files(name) / folder for name, folder in PACKAGES.items()]
        found = {
            "from packages": [path for folder in folders for path in sorted(Path(str(folder)).glob("*.jp*g"))]
        }
    return {
        name: [path.read_bytes() for path in paths[:MOST_IMAGES]] for name, paths in found.items() if paths
    }


def by_torchvision(data: bytes) -> object:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def by_simplejpeg(data: bytes) -> object:
    return torch.from_numpy(simplejpeg.decode_jpeg(data))


def by_pillow(data: bytes) -> object:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def scaled(data: bytes) -> object:
    return decode(data, lambda size: (256 * size[0] // min(size), 256 * size[1] // min(size)))


DECODERS: dict[str, Decoder] = {
    "Pillow": by_pillow,
    "torchvision.io": by_torchvision,
    "simplejpeg": by_simplejpeg,
    "cnnbatch": decode,
    "cnnbatch, side >= 256": scaled,
}


def seconds(decoder: Decoder, images: list[bytes], threads: ThreadPoolExecutor | None) -> float:
    started = time.perf_counter()
    for _ in threads.map(decoder, images) if threads else map(decoder, images):
        pass
    return (time.perf_counter() - started) / len(images)


def measure(images: list[bytes]) -> dict[str, tuple[float, float]]:
    """Return the best of some rounds by decoder: seconds an image with one thread and with two.

    The decoders take turns, so that a machine that is busy for a while slows all of them.
    """
    best = dict.fromkeys(DECODERS, (float("inf"), float("inf")))
    with ThreadPoolExecutor(2) as pair:
        for _ in range(ROUNDS):
            for name, decoder in DECODERS.items():
                now = seconds(decoder, images, None), seconds(decoder, images, pair)
                best[name] = min(best[name][0], now[0]), min(best[name][1], now[1])
    return best


def main() -> None:
    """Print one table a set of photographs."""
    torch.set_num_threads(1)
    for name, images in photographs().items():
        table = Table(title=f"{len(images)} JPEGs: {name}")
        table.add_column("decoder", no_wrap=True)
        for heading in ("ms", "img/s", "2 thr.", "gain", "vs PIL", "2 vs 2"):
            table.add_column(heading, justify="right")
        results = measure(images)
        pillow = results["Pillow"]
        for decoder, (one, two) in results.items():
            ratios = f"{one / two:.2f}", f"{pillow[0] / one:.2f}", f"{pillow[1] / two:.2f}"
            table.add_row(decoder, f"{one * 1e3:.3f}", f"{1 / one:.0f}", f"{1 / two:.0f}", *ratios)
        Console().print(table)


if __name__ == "__main__":
    main()
