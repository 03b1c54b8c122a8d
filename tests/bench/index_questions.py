"""Naming many faces at once beside one by one, and a one-to-many evaluation of 100,000 searches in a million.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m tests.bench.index_questions 1000000 100000

The numbers are the faces in the gallery and the searches. People have ten faces each, whose cosines are
0.64 ± 0.12, those of two people 0 ± 0.1; half of the searches are for people who are not in the gallery. It
is a file that is mapped, as a copy of an index is. The evaluation compares every search with every face; ten
minutes or so of a core at this size.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.gallery import Gallery
from cnnbatch.index.one_to_many import Enrolled, Probes, searched
from cnnbatch.index.questions.answers import Names
from cnnbatch.index.search_decision import search_decision
from cnnbatch.metrics import identification
from cnnbatch.metrics.identification import Searches
from tests.bench.index import peak_memory, seconds, unit

GALLERY, SEARCHES, DIMENSIONS, EACH = 1_000_000, 100_000, 128, 10
NAMED, ALONE, CHECKED = 10_000, 200, 256
_PEOPLE = 10_000  # whose faces are made at once

Half = NDArray[np.float16]


def main(count: int = GALLERY, searches: int = SEARCHES) -> None:
    """Print what each way takes, and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        vectors, probes, people = written(Path(folder), count, searches)
        print(f"{count:,} faces of {DIMENSIONS} numbers, one thread:")
        named(vectors, np.asarray(probes[:NAMED], np.float32))
        with peak_memory() as peak:
            found: list[Searches] = []
            taken = seconds(lambda: found.extend(evaluated(vectors, probes, people)))
        print(
            f"  {searches:,} searches, half of them for strangers: {taken:.0f} s, "
            f"{1e3 * taken / searches:.2f} ms each; {peak[0] / 1e6:,.0f} MB more of anonymous memory"
        )
        merged = identification.merge(found)
        for name, value in identification.result(merged, replicates=200).metrics.items():
            print(f"    {name}: {value.value} ({value.low} to {value.high}), {value.count:,}")
        print(f"  {checked(vectors, probes, people, merged):,} of them are those of brute force")


def written(folder: Path, count: int, searches: int) -> tuple[Half, Half, NDArray[np.int64]]:
    """Write a gallery and searches; return both mapped, and who is searched for, -1 for strangers."""
    rng, people = np.random.default_rng(0), count // EACH
    vectors = np.memmap(folder / "gallery", np.float16, "w+", shape=(people * EACH, DIMENSIONS))
    sought = rng.choice(people, searches // 2, replace=False)
    probes = np.memmap(folder / "probes", np.float16, "w+", shape=(searches, DIMENSIONS))
    centres = [unit(rng.standard_normal((some, DIMENSIONS), np.float32)) for some in _blocks(people)]
    for block, some in enumerate(centres):
        start = block * _PEOPLE * EACH
        vectors[start : start + len(some) * EACH] = faces_of(some, EACH, rng)
    known = np.concatenate(centres)[sought]
    probes[: len(known)] = faces_of(known, 1, rng)
    strangers = unit(rng.standard_normal((searches - len(known), DIMENSIONS), np.float32))
    probes[len(known) :] = faces_of(strangers, 1, rng)
    mixed = rng.permutation(searches)
    probes[:] = probes[mixed]
    return vectors, probes, np.concatenate([sought, np.full(len(strangers), -1)])[mixed]


def faces_of(centres: NDArray[np.float32], each: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return ``each`` faces of people, whose cosines are 0.64 ± 0.12."""
    count = len(centres) * each
    share = np.sqrt(np.clip(rng.normal(0.64, 0.12, (count, 1)), 0.1, 0.95)).astype(np.float32)
    noise = unit(rng.standard_normal((count, DIMENSIONS), np.float32))
    return unit(np.repeat(centres, each, axis=0) * share + noise * np.sqrt(1 - share**2))


def _blocks(people: int) -> list[int]:
    return [min(_PEOPLE, people - start) for start in range(0, people, _PEOPLE)]


def named(vectors: Half, queries: NDArray[np.float32]) -> None:
    """Print what it takes to name faces at once, and one by one."""
    people = np.arange(len(vectors)) // EACH
    names = [f"p{number}" for number in range(people[-1] + 1)]
    rows = np.arange(len(vectors))
    gallery = Gallery(vectors, rows, people.astype(np.int32), names, lambda chosen: [*map(str, chosen)])
    asked = Names(gallery, 5, search_decision(None, "", 1e-2, 0.5, len(vectors)))
    own = np.full(len(queries), -1)
    asked.answer(queries[:2], own[:2])
    few = min(ALONE, len(queries))
    alone = seconds(lambda: [asked.answer(queries[n : n + 1], own[:1]) for n in range(few)]) / few
    together = seconds(lambda: asked.answer(queries, own)) / len(queries)
    print(
        f"  {len(queries):,} faces named at once: {1e3 * together:.2f} ms each; one by one "
        f"{1e3 * alone:.1f} ms: {alone / together:.1f} times"
    )


def evaluated(vectors: Half, probes: Half, people: NDArray[np.int64]) -> list[Searches]:
    """Return the searches, streamed."""
    gallery = Enrolled(vectors, np.arange(len(vectors)), np.arange(len(vectors)) // EACH)
    own = np.full(len(probes), -1)
    hashes = np.where(people >= 0, people, np.arange(len(people)) + len(vectors)).astype(np.uint64)
    return [*searched(Probes(probes, people, own), gallery, hashes)]


def checked(vectors: Half, probes: Half, people: NDArray[np.int64], found: Searches) -> int:
    """Return how many of the first searches have the rank and the similarities of brute force."""
    right = 0
    for number in range(min(CHECKED, len(probes))):
        query = probes[number].astype(np.float64)
        scores = np.empty(len(vectors))
        for start in range(0, len(vectors), 1 << 17):
            scores[start : start + (1 << 17)] = vectors[start : start + (1 << 17)].astype(np.float64) @ query
        who = people[number]
        mates = np.arange(who * EACH, who * EACH + EACH) if who >= 0 else np.empty(0, np.int64)
        mate = scores[mates].max(initial=-np.inf)
        scores[mates] = -np.inf
        rank = 1 + int((scores >= mate).sum()) if len(mates) else 0
        same = rank == found.rank[number] and abs(scores.max() - found.other[number]) < 1e-6
        right += same and (not len(mates) or abs(mate - found.mate[number]) < 1e-6)
    return right


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
