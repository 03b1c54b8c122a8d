"""An index beside FAISS's own: build, one query, an append of one hundredth, exact search of 1,000 probes.

    python -m tests.bench.index 1000000 128 2        (as many vectors, of so many numbers; on so many cores)

People with ten vectors each, whose cosines are 0.64 ± 0.12, those of two people 0 ± 0.1. Every ratio is of
two ways in one run, on the same cores; imports count in none. FAISS builds with all threads that it may have,
and searches for one query with one, as cnnbatch does.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.humanize import counted
from cnnbatch.index import segments
from cnnbatch.index.approximate import FastScan
from cnnbatch.index.codebook import threads
from cnnbatch.index.embeddings import counts, open_embedded, parts_of, read_rows
from cnnbatch.index.recall import RecallProbes
from cnnbatch.index.run import index
from cnnbatch.index.search import Index, open_index
from cnnbatch.output.part import ENGINE_COLUMNS, written_as
from cnnbatch.storage import Storage
from tests.embedded import JOB, QUIET, job, space
from tests.outputs import write_job

SIZE, PART, PROBES, QUERIES, K = (1_000_000, 128), 10_000, 1_000, 200, 10
Vectors = NDArray[np.float32]


def main(count: int = SIZE[0], dimensions: int = SIZE[1], cores: int = 1) -> None:
    """Print what each way takes, and the ratios."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:cores])
    try:
        with threads(cores):
            measure(count, dimensions, cores)
    finally:
        os.sched_setaffinity(0, every)


def measure(count: int, dimensions: int, cores: int) -> None:
    """Print what each way takes on the cores that this process may use, and the ratios."""
    new = max(1, count // 100)
    vectors = people(count + new + PROBES, dimensions)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CNNBATCH_CACHE"] = f"{folder}/cache"
        out, place = Path(folder, "out"), Path(folder, "index")
        write(out, vectors[:count])
        print(f"{count:,} vectors of {dimensions}, {counted(cores, 'core')}:")
        with peak_memory() as peak:
            built = seconds(lambda: index(job(out, place, index=REAL), QUIET))
        opened = open_index(str(place), Storage())
        recall = opened.manifest.recall
        print(
            f"  build {built:.2f} s, {peak[0] / 1e6:,.0f} MB of anonymous memory more than before; {recall}"
        )
        own, written = contender(vectors[:count], opened, Path(folder, "own.parquet"))
        print(
            f"  FAISS's fast scan and the same columns as Parquet {written:.2f} s: "
            f"{built / written:.2f} times"
        )
        read, recalled = seconds(lambda: read_all(out)), seconds(lambda: recall_of(opened))
        print(f"    of the build {read:.2f} s read and normalise, alone; {recalled:.2f} s measure the recall")
        queries(opened, own, vectors[:count], vectors[-PROBES:])
        exact(opened, vectors[:count], vectors[-PROBES:])
        write(out, vectors[count : count + new], first=-(-count // PART))
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
        added = seconds(lambda: index(job(out, place, index=REAL), QUIET))
        after = [path for path in place.rglob("*") if path.is_file()]
        changed = [path for path in after if before.get(path) != path.stat().st_mtime_ns]
        size, rows = sum(path.stat().st_size for path in changed), opened.manifest.bytes / count * new
        print(
            f"  append of {new:,}: {added:.3f} s, {added / built:.3f} of the build; {len(changed)} objects,"
        )
        print(f"    {size / rows:.2f} times the bytes of as many rows")


REAL = {"segment_rows": 8192, "exact_below": 20_000}
"""What a job has unless it says otherwise."""


def people(count: int, dimensions: int) -> Vectors:
    """Return unit vectors (N, D) of people with ten each."""
    rng = np.random.default_rng(0)
    share = np.sqrt(np.clip(rng.normal(0.64, 0.12, (count, 1)), 0.1, 0.95)).astype(np.float32)
    centres = unit(rng.standard_normal((-(-count // 10), dimensions), np.float32))
    noise = unit(rng.standard_normal((count, dimensions), np.float32))
    return unit(np.repeat(centres, 10, axis=0)[:count] * share + noise * np.sqrt(1 - share**2))


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def write(out: Path, vectors: Vectors, first: int = 0) -> None:
    """Write an output of pictures with these embeddings, from a part on."""
    write_job(out, text=JOB)
    (out / "predictions").mkdir(exist_ok=True)
    for place in range(0, len(vectors), PART):
        number = first + place // PART
        table = rows(vectors[place : place + PART], number * PART)
        path = out / "predictions" / f"part-{number:08}.parquet"
        pq.write_table(table, path, row_group_size=1000, **written_as(table.schema))


def rows(vectors: Vectors, first: int) -> pa.Table:
    """Return the rows of a part."""
    names = [f"photos/{number:09}.jpg" for number in range(first, first + len(vectors))]
    about = {"key": names, "uri": names, "vanished": [False] * len(names)}
    columns: dict[str, Any] = {
        one.name: about.get(one.name, pa.nulls(len(names), one.type)) for one in ENGINE_COLUMNS
    }
    columns["country"] = ["DE", "FR"] * (len(names) // 2) + ["DE"] * (len(names) % 2)
    columns["year"] = pa.array(np.arange(len(names)) % 9 + 2015, pa.int32())
    flat: Any = pa.array(vectors.ravel())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    kept = [pa.field("country", pa.string()), pa.field("year", pa.int32())]
    return pa.table(columns, pa.schema([*ENGINE_COLUMNS, *kept, space(vectors.shape[1]).field()]))


def read_all(out: Path) -> None:
    """Read all embeddings of an output, as a build does."""
    embedded = open_embedded(str(out), Storage(), 0, None)
    for part in parts_of(embedded.output):
        read_rows(embedded, part, range(len(counts(embedded, part))))


def recall_of(opened: Index) -> None:
    """Measure the recall of an index, as a build does."""
    copy, book = opened.copy(), opened.codebook
    assert book is not None
    assert copy.codes is not None
    RecallProbes(copy.vectors, copy.live, None).measure(FastScan(book, copy.codes), opened.manifest.refine)


def contender(vectors: Vectors, index: Index, path: Path) -> tuple[Any, float]:
    """Return FAISS's fast scan, and the seconds that it takes to make it and to write the rows as Parquet.

    All columns of the index but the codes are in memory before, and are written as it writes them.
    """
    dimensions = vectors.shape[1]
    own = faiss.IndexPQFastScan(dimensions, dimensions // 2, 4, faiss.METRIC_INNER_PRODUCT)
    copy = index.copy()
    table = segments.with_vectors(copy.columns(copy.tables[0].column_names), copy.vectors, None)
    table = pa.Table.from_batches(table.combine_chunks().to_batches())

    def build() -> None:
        own.train(vectors)
        own.add(vectors)
        with pq.ParquetWriter(path, table.schema, **segments.written_as(table.schema)) as writer:
            for place in range(0, len(vectors), REAL["segment_rows"]):
                writer.write_table(table.slice(place, REAL["segment_rows"]))

    return own, seconds(build)


def queries(opened: Index, own: Any, vectors: Vectors, probes: Vectors) -> None:
    """Print what one query takes, each way in turns."""
    opened.search(probes[:1], K)
    flat = faiss.IndexFlatIP(own.d)
    flat.add(vectors)
    refined = faiss.IndexRefine(own, flat)
    refined.k_factor = opened.manifest.refine
    ours, theirs = [], []
    for number in range(min(QUERIES, len(probes))):
        one = probes[number : number + 1]
        ours.append(seconds(lambda one=one: opened.search(one, K)))  # type: ignore[misc]
        theirs.append(seconds(lambda one=one: refined.search(one, K)))  # type: ignore[misc]
    print(
        f"  a query {1e3 * median(ours):.2f} ms, FAISS's IndexRefine of as many candidates "
        f"{1e3 * median(theirs):.2f} ms: {median(ours) / median(theirs):.2f} times"
    )


def exact(opened: Index, vectors: Vectors, probes: Vectors) -> None:
    """Print what it takes to compare all vectors with many probes, and NumPy's product with argpartition."""
    ours = seconds(lambda: opened.search(probes, K))

    def product() -> None:
        for place in range(0, len(probes), 100):  # So that the scores fit in memory.
            scores = probes[place : place + 100] @ vectors.T
            np.argpartition(-scores, K, axis=1)[:, :K]

    theirs = seconds(product)
    print(f"  {len(probes):,} probes exactly {ours:.2f} s, NumPy {theirs:.2f} s: {ours / theirs:.2f} times")


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Give a list whose number is in the end by how much anonymous memory grew at most in the block."""
    found, before, ended = [0], _anonymous(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            found[0] = max(found[0], _anonymous() - before)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        ended.set()
        watching.join()


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
