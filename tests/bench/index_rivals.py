"""Other indexes of vectors on the same data, each with the least effort that finds 0.98 of the 10 nearest.

    python -m tests.bench.index_rivals 100000 128 [NAME…]         (vectors, their length; one thread)

FAISS is there anyway. usearch 2.x and LanceDB are measured where they are installed, and named where not:

    pip install usearch lancedb

Everything is from memory: no rival reads an output, keeps columns or writes checksums. LanceDB uses all
cores. HNSW and usearch take minutes from 100,000 vectors on; those of a graph double their effort until ef
1,024.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("LANCE_LOG", "error")

import faiss
import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.exact import search_exactly
from cnnbatch.index.run import index
from cnnbatch.index.search import open_index
from cnnbatch.storage import Storage
from tests.bench.index import PART, REAL, K, Vectors, people, write
from tests.embedded import QUIET, job

ENOUGH, QUERIES, MOST_EF = 0.98, 200, 1_024
Rows = NDArray[np.int64]
Search = Callable[[Vectors], Rows]
Efforts = Iterator[tuple[str, Search]]
"""What is tried after building, the least effort first: its name, and what finds rows (1, K) of a query."""


def main(count: int = 100_000, dimensions: int = 128, *names: str) -> None:
    """Print for each index its build, its effort, its recall and the time of a query."""
    faiss.omp_set_num_threads(1)
    vectors = people(count + QUERIES, dimensions)
    held = np.linspace(0, len(vectors) - 1, QUERIES, dtype=np.int64)  # of people of whom nine more are there
    vectors, probes = np.delete(vectors, held, axis=0), vectors[held]
    true = search_exactly(probes, vectors.astype(np.float16), K)[1]
    print(f"{count:,} vectors of {dimensions}, one thread, {QUERIES} queries one by one:")
    for name in names or RIVALS:
        package = name.partition(" ")[0].lower()
        if find_spec(package if package in ("usearch", "lancedb") else "faiss") is None:
            print(f"  {name}: not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured(name, RIVALS[name](vectors, Path(folder)), probes, true)


def measured(name: str, efforts: Efforts, probes: Vectors, true: Rows) -> None:
    """Print the line of one index: the first effort whose recall is enough, else the last."""
    started = time.perf_counter()
    effort, search = next(efforts)
    built = time.perf_counter() - started
    while True:
        times: list[float] = []
        rows: list[Rows] = []
        for one in probes:
            started = time.perf_counter()
            rows.append(search(one[None])[0])
            times.append(time.perf_counter() - started)
        recall = np.mean([len({*a.tolist()} & {*b.tolist()}) / K for a, b in zip(rows, true, strict=True)])
        if recall >= ENOUGH or (further := next(efforts, None)) is None:
            break
        effort, search = further
    missed = "" if recall >= ENOUGH else f"  ({ENOUGH} not reached)"
    print(
        f"  {name}: build {built:.1f} s; {effort}: recall {recall:.4f}, {1e3 * median(times):.2f} ms{missed}",
        flush=True,
    )


def cnnbatch(vectors: Vectors, folder: Path) -> Efforts:
    """From stored embeddings to an index on storage; its answers have all columns."""
    os.environ["CNNBATCH_CACHE"] = str(folder / "cache")
    write(folder / "out", vectors)
    index(job(folder / "out", folder / "index", index=REAL), QUIET)
    opened = open_index(str(folder / "index"), Storage())

    def search(query: Vectors) -> Rows:
        found = opened.search(query, K)
        rows: Rows = PART * found["part"].to_numpy()[None] + found["row"].to_numpy()[None]
        return rows

    yield f"refine {opened.manifest.refine}", search


def refined(vectors: Vectors, folder: Path) -> Efforts:
    """FAISS: 4-bit fast scan, refined by vectors in memory."""
    dimensions = vectors.shape[1]
    scan = faiss.IndexPQFastScan(dimensions, dimensions // 2, 4, faiss.METRIC_INNER_PRODUCT)
    flat = faiss.IndexFlatIP(dimensions)
    whole = faiss.IndexRefine(scan, flat)
    whole.train(vectors)
    whole.add(vectors)
    for factor in (5, 10, 20, 40):
        whole.k_factor = factor
        yield f"refine {factor}", lambda query: whole.search(query, K)[1]


def ivf(vectors: Vectors, folder: Path) -> Efforts:
    """FAISS: inverted lists of float16 vectors, four square roots of how many there are."""
    lists = int(4 * len(vectors) ** 0.5)
    coarse = faiss.IndexFlatIP(vectors.shape[1])
    kind = faiss.ScalarQuantizer.QT_fp16
    whole = faiss.IndexIVFScalarQuantizer(
        coarse, vectors.shape[1], lists, kind, faiss.METRIC_INNER_PRODUCT, False
    )
    whole.train(vectors[: 64 * lists])
    whole.add(vectors)
    for share in (32, 16, 8, 6, 4, 3, 2, 1):
        whole.nprobe = max(1, lists // share)
        yield f"{whole.nprobe} of {lists} lists", lambda query: whole.search(query, K)[1]


def hnsw(vectors: Vectors, folder: Path) -> Efforts:
    """FAISS: a graph, of M 16."""
    whole = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    whole.hnsw.efConstruction = 100
    whole.add(vectors)
    for effort in efs():
        whole.hnsw.efSearch = effort
        yield f"ef {effort}", lambda query: whole.search(query, K)[1]


def usearch(vectors: Vectors, folder: Path) -> Efforts:
    """The graph of usearch, of M 16, with float16 vectors."""
    from usearch.index import Index  # type: ignore[import-not-found]

    whole = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=100)
    whole.add(np.arange(len(vectors)), vectors, threads=1)
    for effort in efs():
        whole.expansion_search = effort
        yield f"ef {effort}", lambda query: np.asarray(whole.search(query, K, threads=1).keys, np.int64)[None]


def lancedb(vectors: Vectors, folder: Path) -> Efforts:
    """LanceDB's IVF_PQ with its own number of lists, four numbers a byte."""
    import lancedb  # type: ignore[import-not-found]
    import pyarrow as pa
    from lancedb.index import IvfPq  # type: ignore[import-not-found]

    flat: Any = pa.array(vectors.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = lancedb.connect(folder).create_table(
        "v", pa.table({"row": np.arange(len(vectors)), "vector": column})
    )
    lists = max(1, int(len(vectors) ** 0.5))
    form = IvfPq("dot", num_partitions=lists, num_sub_vectors=vectors.shape[1] // 4)
    table.create_index("vector", config=form)

    def search(query: Vectors, probes: int, factor: int) -> Rows:
        asked = table.search(query[0]).distance_type("dot").nprobes(probes).refine_factor(factor)
        rows: Rows = asked.select(["row", "_distance"]).limit(K).to_arrow()["row"].to_numpy()[None]
        return rows

    for share in (16, 8, 4, 3, 2, 1):
        probes = max(1, lists // share)
        yield f"{probes} of {lists} lists, refine 20", partial(search, probes=probes, factor=20)


def efs() -> Iterator[int]:
    """Yield 64, twice that … up to the most that is tried."""
    effort = 64
    while effort <= MOST_EF:
        yield effort
        effort *= 2


RIVALS: dict[str, Callable[[Vectors, Path], Efforts]] = {
    "cnnbatch": cnnbatch,
    "FAISS IndexRefine": refined,
    "FAISS IVF": ivf,
    "FAISS HNSW": hnsw,
    "usearch": usearch,
    "LanceDB": lancedb,
}

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
