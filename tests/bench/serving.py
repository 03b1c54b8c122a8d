"""An index over HTTP beside the same questions one at a time in one process: photos and vectors a second.

    python -m tests.bench.serving [PHOTOS]

Sixteen clients ask at once; a replica answers 16 questions together, or one. Both ways have the network
loaded; the process has one thread, the replica all of this machine's cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path

import faiss

from cnnbatch.cluster.session import close
from cnnbatch.index.run import index
from cnnbatch.index.serving.app import build_app
from cnnbatch.index.serving.deployment import replicas
from cnnbatch.index.serving.gate import Limits
from cnnbatch.index.serving.questions import Photo, Search
from cnnbatch.index.serving.server import listening, running
from cnnbatch.index.serving.service import ReplicaOptions, Service, ServiceOptions
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import load_job, load_map_job
from tests.bench.index import seconds
from tests.bench.measuring import SHARED

PHOTOS, CLIENTS = 64, 16
VECTORS = 512
_QUIET = RunOptions(quiet=True)


def main(count: int = PHOTOS) -> None:
    """Print what each way answers in a second, and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        faiss.omp_set_num_threads(1)
        os.environ["CNNBATCH_CACHE"] = f"{folder}/cache"
        photos = [*islice(sorted((SHARED / "data" / "lfw" / "lfw").rglob("*.jpg")), count)]
        if not photos:
            print("no photos of faces beside the checkout: serving is not measured")
            return
        place = built(Path(folder), photos)
        data = [photo.read_bytes() for photo in photos]
        service = Service(ServiceOptions(place, refresh_s=3600, cpus=1))
        try:
            alone = one_by_one(service, data)
        finally:
            service.close()
        for batch in (1, 16):
            for name, taken in served(place, data, batch).items():
                ratio = f"{taken / alone[name]:.2f} times"
                print(f"  {name}, {CLIENTS} clients, batches of {batch}: {taken:.1f}/s, {ratio}")


def built(folder: Path, photos: Sequence[Path]) -> str:
    """Return an index of the faces of some photos."""
    job = load_map_job(
        "faces", [f"input={[*map(str, photos)]}", f"output={folder}/out", "compute.pool=inline"]
    )
    run(job, _QUIET)
    made = load_job("index", [f"input={folder}/out", f"output={folder}/index", "compute.pool=inline"])
    index(made, _QUIET)  # type: ignore[arg-type]
    return f"{folder}/index"


def one_by_one(service: Service, data: Sequence[bytes]) -> dict[str, float]:
    """Return what one process answers in a second, one question after the other; print what batches save."""
    questions = {
        "photos": [Search(photos=(Photo("photo.jpg", one),)) for one in data],
        "vectors": [Search(vectors=(vector_of(number),)) for number in range(VECTORS)],
    }
    rates = {}
    for name, asked in questions.items():
        service.answers(asked[:CLIENTS])
        started = time.process_time()
        rates[name] = len(asked) / seconds(partial(in_batches, service, asked, 1))
        alone = time.process_time() - started
        print(f"  {name} one at a time in one process: {rates[name]:.1f}/s")
        started = time.process_time()
        in_batches(service, asked, CLIENTS)
        saved = alone / (time.process_time() - started)
        print(f"  {name}, {CLIENTS} together, in the processor's time: {saved:.2f} times")
    return rates


def in_batches(service: Service, asked: Sequence[Search], size: int) -> None:
    for start in range(0, len(asked), size):
        service.answers(asked[start : start + size])


def served(place: str, data: Sequence[bytes], batch: int) -> dict[str, float]:
    """Return what a server of one replica answers in a second."""
    options = ReplicaOptions(ServiceOptions(place, refresh_s=3600), batch=batch)
    with (
        replicas(options) as backend,
        listening("127.0.0.1", 0) as listener,
        running(build_app(backend, Limits(per_second=0)), listener),
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        port = listener.getsockname()[1]
        bodies = {
            "photos": [("/search", one) for one in data],
            "vectors": [("/search/vectors", json_of(number)) for number in range(VECTORS)],
        }
        rates = {}
        for name, asked in bodies.items():
            [*pool.map(lambda one: post(port, *one), asked[:CLIENTS])]
            taken = seconds(lambda asked=asked: [*pool.map(lambda one: post(port, *one), asked)])  # type: ignore[misc]
            rates[name] = len(asked) / taken
    close()
    return rates


def post(port: int, path: str, body: bytes) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(
        "POST", path, body, {"content-type": "application/json" if path.endswith("vectors") else "image/jpeg"}
    )
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    connection.close()


def vector_of(number: int) -> tuple[float, ...]:
    return tuple(float((number * place) % 17 - 8 or 1) for place in range(1, 129))


def json_of(number: int) -> bytes:
    return f'{{"vectors": [{[*vector_of(number)]}]}}'.encode()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
