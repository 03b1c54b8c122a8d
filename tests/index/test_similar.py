"""Exact and approximate search beside brute force and FAISS's own indexes."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from cnnbatch.index import exact
from cnnbatch.index.approximate import FastScan, search_approximately
from cnnbatch.index.codebook import LEAST, MEMBERS, Codebook, means_of_many, padded, threads, train
from cnnbatch.index.exact import search_exactly, similarities
from cnnbatch.index.held_out import SHARE, is_held_out
from cnnbatch.index.recall import RecallProbes, least_refine, probes_of
from tests.embedded import nearest, people

K = 7


def trained(vectors: Any, lists: int = 0) -> Codebook:
    """Return a codebook, which these are vectors enough for."""
    book = train(vectors, lists)
    assert book is not None
    return book


@pytest.mark.parametrize("block", [1 << 20, 4 * 16 * 10, 4 * 30 * 50])
@pytest.mark.parametrize("count", [1, 5, 30])
def test_exact_search_finds_what_brute_force_finds(
    monkeypatch: pytest.MonkeyPatch, block: int, count: int
) -> None:
    monkeypatch.setattr(exact, "BLOCK_BYTES", block)
    vectors, queries = people(300), people(count, seed=5)
    scores, rows = search_exactly(queries, vectors.astype(np.float16), K)
    assert (rows == nearest(queries, vectors, K)).all()
    stored = vectors.astype(np.float16).astype(np.float64)
    expected = np.take_along_axis(queries.astype(np.float64) @ stored.T, rows, 1)
    assert np.allclose(scores, expected, atol=1e-6)


def test_exact_search_of_some_rows_and_of_fewer_than_asked_for() -> None:
    vectors, queries = people(300), people(4, seed=5)
    chosen = np.array([3, 50, 51, 200, 299])
    _, rows = search_exactly(queries, vectors.astype(np.float16), K, chosen)
    assert (rows[:, :5] == chosen[nearest(queries, vectors[chosen], 5)]).all()
    assert (rows[:, 5:] == -1).all()


def test_a_similarity_does_not_depend_on_its_place() -> None:
    vectors = people(400, dimensions=37).astype(np.float16)
    queries = people(9, seed=3, dimensions=37)
    rows = np.tile(np.arange(400), (9, 1))
    whole = similarities(queries, vectors, rows)
    order = np.random.default_rng(0).permutation(400)
    assert (similarities(queries, vectors[order], rows)[:, np.argsort(order)] == whole).all()
    alone = np.concatenate([similarities(queries[n : n + 1], vectors, rows[n : n + 1]) for n in range(9)])
    assert (alone == whole).all()


@pytest.mark.parametrize("dimensions", [2, 3, 16, 17])
def test_codes_and_candidates_are_those_of_faiss(dimensions: int) -> None:
    vectors = people(700, dimensions=dimensions)
    queries = people(20, seed=9, dimensions=dimensions)
    book = trained(vectors)
    parts, codes = -(-dimensions // 2), book.encode(vectors)
    own = faiss.IndexPQFastScan(2 * parts, parts, 4, faiss.METRIC_INNER_PRODUCT)
    book.set_in(own.pq)
    own.is_trained = True
    own.add(padded(vectors))
    assert codes.shape == (700, book.code_bytes)
    _, expected = own.search(padded(queries), 40)
    assert (FastScan(book, codes).candidates(queries, 40) == expected).all()
    refined = faiss.IndexRefineFlat(own, faiss.swig_ptr(flat := padded(vectors)))
    refined.k_factor = 6
    distances, rows = refined.search(padded(queries), 5)
    single: Any = vectors  # by which FAISS refines
    scores, found = search_approximately(queries, FastScan(book, codes), single, 5, 6)
    assert np.allclose(scores, distances, atol=1e-6)
    assert len(flat) == 700
    assert (found == rows).mean() > 0.99  # the rest are equally near


def test_a_code_names_the_nearest_centroid_of_each_part() -> None:
    vectors = people(400, dimensions=6)
    book = trained(vectors)
    halves = book.encode(vectors)
    numbers = np.stack([halves & 15, halves >> 4], axis=2).reshape(400, -1)[:, :3]
    distances = ((vectors.reshape(400, 3, 1, 2) - book.centroids) ** 2).sum(axis=3)
    best = distances.min(axis=2)
    assert np.allclose(
        np.take_along_axis(distances, numbers[..., None].astype(int), 2)[..., 0], best, atol=1e-6
    )


def test_a_codebook_is_the_same_each_time_and_comes_back() -> None:
    vectors = people(600)
    book = trained(vectors)
    with threads(2):
        again = trained(vectors)
    assert (book.centroids == again.centroids).all()
    assert (Codebook.from_bytes(book.to_bytes()).centroids == book.centroids).all()


def test_no_centroid_has_few_members() -> None:
    """Each is the mean of at least so many different vectors; a person with many copies is one vector."""
    vectors = people(500, dimensions=6)
    vectors = np.concatenate([vectors, np.tile(people(1, seed=7, dimensions=6), (500, 1))])
    book = trained(vectors)
    different = np.unique(vectors, axis=0).reshape(-1, 3, 2)
    for part, centroids in enumerate(book.centroids):
        points, kept = different[:, part], np.unique(centroids, axis=0)
        assert len(kept) > 1
        # Means of the points nearest to centroids of which each had enough: these here are those means.
        members = [((points[:, None] - kept) ** 2).sum(2).argmin(1) == one for one in range(len(kept))]
        assert min(one.sum() for one in members) >= MEMBERS / 2


def test_means_are_those_of_many_and_the_smallest_go_first() -> None:
    points = np.array([[0.0, 0]] * 40 + [[1.0, 0]] * 35 + [[1.2, 0]] * 5 + [[9.0, 9]] * 29, np.float32)
    found = means_of_many(points, np.array([[0, 0], [1, 0], [1.2, 0], [9, 9]], np.float32))
    # 1.2 joins 1, and has too few alone; (9, 9) has one too few, and goes to the nearest that is left.
    expected = np.array([[0, 0], points[40:].astype(np.float64).mean(0)], np.float32)
    assert np.allclose(found, expected[[0, 1, 1, 1]], atol=1e-6)


def test_too_few_different_vectors_train_no_codebook() -> None:
    assert train(np.tile(people(LEAST - 1), (3, 1))) is None
    assert train(people(LEAST)) is not None


def test_only_some_rows_are_scanned() -> None:
    vectors = people(700)
    book = trained(vectors)
    chosen = np.flatnonzero(np.arange(700) % 3 == 0)
    found = FastScan(book, book.encode(vectors), chosen).candidates(people(5, seed=2), 300)
    assert set(found[found >= 0].tolist()) <= set(chosen.tolist())
    assert (np.sort(found, axis=1)[:, -234:] == chosen).all()


def test_one_in_sixteen_is_held_out_wherever_it_lies() -> None:
    vectors = people(8000).astype(np.float16)
    held = is_held_out(vectors)
    assert abs(held.mean() - 1 / SHARE) < 0.01
    order = np.random.default_rng(0).permutation(8000)
    assert (is_held_out(vectors[order]) == held[order]).all()
    rows = probes_of(vectors, np.arange(8000), 50)
    assert held[rows].all()
    assert (vectors[order][probes_of(vectors[order], np.arange(8000), 50)] == vectors[rows]).all()


def test_recall_is_what_brute_force_says() -> None:
    vectors = people(3000, dimensions=32)
    stored = vectors.astype(np.float16)
    book = trained(vectors)
    scan = FastScan(book, book.encode(stored))
    measured = RecallProbes(stored, np.arange(3000), 0.5)
    found = measured.measure(scan, 1)
    queries = stored[measured.probes].astype(np.float32)
    true = nearest(queries, vectors, 11)
    _, near = search_approximately(queries, scan, stored, 11, 1)
    shares = [
        len({*a.tolist()} & {*b.tolist()} - {p}) / 10
        for a, b, p in zip(true, near, measured.probes.tolist(), strict=True)
    ]
    assert found.at_10 == pytest.approx(np.mean(shares), abs=0.002)
    assert found.at_10 < 0.98 <= measured.measure(scan, 20).at_10
    assert (found.probes, found.rows, found.match) == (len(measured.probes), 3000, 0.5)
    assert found.matches is not None
    assert found.matches > found.at_10  # matches are nearer, and found more often


def test_the_refine_factor_grows_until_the_target_holds() -> None:
    vectors = people(3000, dimensions=32).astype(np.float16)
    book = trained(vectors)
    scan = FastScan(book, book.encode(vectors))
    measured = RecallProbes(vectors, np.arange(3000), None)
    refine, recall = least_refine(lambda refine: measured.measure(scan, refine), 0.98, 1, 320)
    assert recall.at_10 >= 0.98 > measured.measure(scan, refine // 2).at_10
    assert least_refine(lambda refine: measured.measure(scan, refine), 1.1, 4, 8)[0] == 8
