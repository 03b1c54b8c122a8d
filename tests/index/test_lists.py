"""Inverted lists: chosen in the job, scanned as far as the recall takes; the rest is as without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cnnbatch.index.approximate import FastScan
from cnnbatch.index.check import check
from cnnbatch.index.codebook import MEMBERS, Codebook, bytes_of_codes
from cnnbatch.index.manifest import Recall
from cnnbatch.index.recall import least_probes
from cnnbatch.storage import Storage
from tests.embedded import build, nearest, people, write_pictures
from tests.index.test_index_build import K, answers, ids, manifest, opened, segment_files, true_ids
from tests.index.test_similar import trained


@pytest.mark.parametrize("dimensions", [6, 7, 16])
def test_a_code_begins_with_the_number_of_the_most_similar_list(dimensions: int) -> None:
    vectors = people(900, dimensions=dimensions)
    book = trained(vectors, 20)
    assert book.lists is not None
    flat, codes = Codebook(book.centroids), book.encode(vectors)
    assert (codes[:, 1:] == flat.encode(vectors)).all()
    similar = vectors @ book.lists[:, :dimensions].T
    assert np.allclose(similar[np.arange(900), codes[:, 0]], similar.max(axis=1), atol=1e-6)
    assert codes.shape[1] == book.code_bytes == bytes_of_codes(dimensions, len(book.lists))


@pytest.mark.parametrize(("lists", "width"), [(0, 0), (1, 0), (2, 1), (256, 1), (257, 2), (65_536, 2)])
def test_a_number_of_a_list_takes_as_many_bytes_as_it_has_to(lists: int, width: int) -> None:
    assert bytes_of_codes(16, lists) == 4 + width


def test_lists_come_back_and_have_many_members() -> None:
    vectors = people(900)
    book = trained(vectors, 400)
    assert book.lists is not None
    assert 1 < len(book.lists) <= len(vectors) // MEMBERS
    assert np.allclose(np.linalg.norm(book.lists, axis=1), 1, atol=1e-6)
    again = Codebook.from_bytes(book.to_bytes())
    assert again.lists is not None
    assert np.array_equal(again.lists, book.lists)
    assert (again.centroids == book.centroids).all()


def test_all_lists_together_are_the_flat_scan_and_some_are_a_part_of_it() -> None:
    vectors, queries = people(900), people(15, seed=3)
    book = trained(vectors, 20)
    assert book.lists is not None
    flat = FastScan(Codebook(book.centroids), book.encode(vectors)[:, 1:]).candidates(queries, 900)
    scan = FastScan(book, book.encode(vectors), probes=len(book.lists))
    assert (np.sort(scan.candidates(queries, 900)) == np.sort(flat)).all()
    for line in scan.over(3).candidates(queries, 900):
        lists = book.encode(vectors[line[line >= 0]])[:, 0]
        assert len(np.unique(lists)) == 3
        assert len(lists) == np.isin(book.encode(vectors)[:, 0], lists).sum()


def test_the_least_probes_reach_the_target() -> None:
    def measure(probes: int) -> Recall:
        return Recall(at_10=min(1.0, 0.5 + probes / 200), at_1=1.0, probes=9, rows=9)

    found, recall = least_probes(measure, 0.9, 512)
    assert 80 <= found <= 80 * 2**0.5
    assert recall == measure(found)
    assert least_probes(measure, 0.2, 512)[0] == 1
    assert least_probes(measure, 1.1, 512)[0] == 512


def test_an_index_with_lists_scans_few_and_finds_what_exact_search_finds(tmp_path: Path) -> None:
    vectors = people(1500, each=50)
    queries = vectors[::75] + np.random.default_rng(1).normal(0, 0.05, (20, 16)).astype(np.float32)
    write_pictures(tmp_path / "out", vectors, each=100)
    build(tmp_path / "out", tmp_path / "index", index={"lists": 16})
    state = manifest(tmp_path / "index")
    assert state.recall is not None
    assert 1 < state.lists <= 16
    assert 0 < state.probes < state.lists
    assert state.recall.at_10 >= 0.98
    found, true = ids(tmp_path / "index", queries), true_ids(queries, vectors)
    assert np.mean([len({*a} & {*b}) / K for a, b in zip(found, true, strict=True)]) > 0.97
    chosen = np.flatnonzero([row == "DE" for row in countries(1500)])
    found = ids(tmp_path / "index", queries, K, "country = 'DE'")
    names = [f"p{number:06}.jpg" for number in chosen]
    true = [[names[row] for row in line] for line in nearest(queries, vectors[chosen], K)]
    assert np.mean([len({*a} & {*b}) / K for a, b in zip(found, true, strict=True)]) > 0.97
    again = check(str(tmp_path / "index"), Storage(), state)
    assert again.recall == state.recall


def countries(count: int) -> list[str]:
    return [("DE", "FR", "")[sum(f"p{number:06}.jpg".encode()) % 3] for number in range(count)]


def test_rows_that_are_added_go_into_the_lists_and_compaction_keeps_the_answers(tmp_path: Path) -> None:
    from cnnbatch.index.compact import compact_index

    vectors = people(1000, each=50)
    write_pictures(tmp_path / "all", vectors)
    write_pictures(tmp_path / "out", vectors[:950])
    build(tmp_path / "out", tmp_path / "index", index={"lists": 8})
    before, book = segment_files(tmp_path / "index"), manifest(tmp_path / "index").codebook
    for part in (38, 39):
        name = f"predictions/part-{part:08}.parquet"
        shutil.copy(tmp_path / "all" / name, tmp_path / "out" / name)
    assert build(tmp_path / "out", tmp_path / "index").images == 50
    assert before.items() <= segment_files(tmp_path / "index").items()
    assert manifest(tmp_path / "index").codebook == book
    found = opened(tmp_path / "index").search(vectors[960:990:10], 1)
    assert found["id"].to_pylist() == [f"p{number:06}.jpg" for number in (960, 970, 980)]
    ours = answers(tmp_path / "index", vectors[::100])
    (tmp_path / "out" / "predictions" / "part-00000003.parquet").unlink()
    build(tmp_path / "out", tmp_path / "index")
    [*compact_index(str(tmp_path / "index"))]
    gone = {f"p{number:06}.jpg" for number in range(75, 100)}
    kept = [row for row in ours.to_pylist() if row["id"] not in gone and row["query"] != 1]
    rows = answers(tmp_path / "index", vectors[::100]).to_pylist()
    assert {(row["query"], row["id"]) for row in kept} <= {(row["query"], row["id"]) for row in rows}
