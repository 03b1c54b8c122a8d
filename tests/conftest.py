"""Pictures, settings that every test shares, and how the tests are dealt out to several processes."""

import io
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests import dealing
from tests.places import SHARED

os.environ.setdefault("RAY_ADDRESS", "local")  # never join a cluster that runs on this machine
os.environ.setdefault("RAY_worker_niceness", "0")  # what others test beside would leave it no processor
settings.register_profile("cnnbatch", deadline=None)
settings.load_profile("cnnbatch")
dealing.share_the_cores()
for number in (signal.SIGINT, signal.SIGHUP):  # Ignored where nohup or a shell's `&` started the tests; what
    if signal.getsignal(number) is signal.SIG_IGN:  # they start would inherit that, and not a handler.
        signal.signal(number, lambda *_: None)

pytest_xdist_make_scheduler = dealing.scheduler
pytest_xdist_auto_num_workers = dealing.auto_num_workers
pytest_collection_modifyitems = dealing.longest_first
pytest_collection_finish = dealing.keep_imports
pytest_sessionfinish = dealing.release_imports


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give each process of tests a folder for temporary files of its own; Ray keeps its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", "/tmp"))  # Its sockets need short paths.
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _cache_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have what a module's fixtures run remember nothing, and never read the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNBATCH_CACHE", _new_cache(tmp_path_factory))
        yield


@pytest.fixture(autouse=True)
def _cache_of_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own, in which nothing is remembered of another test."""
    monkeypatch.setenv("CNNBATCH_CACHE", _new_cache(tmp_path_factory))


def _new_cache(folders: pytest.TempPathFactory) -> str:
    return str(folders.getbasetemp() / f"cache-{uuid4().hex}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and weights beside the checkout, or skip."""
    if not SHARED.is_dir():
        pytest.skip("no folder of real images and weights beside the checkout")
    return SHARED


def jpeg(seed: int, width: int = 64, height: int = 48) -> bytes:
    """Return a small JPEG whose pixels follow from ``seed``."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[int], Path]:
    """Return a function that fills a folder with a number of JPEGs and returns the folder."""

    def fill(count: int) -> Path:
        folder = tmp_path / "photos"
        for number in range(count):
            path = folder / f"album-{number % 3}" / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
        return folder

    return fill
