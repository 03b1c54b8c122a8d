"""Codes by a grid are the codes of FAISS."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cnnbatch.index import grid
from cnnbatch.index.codebook import Codebook
from cnnbatch.index.grid import PAYS_FROM, Encoder, Grid
from tests.embedded import Vectors, people
from tests.index.test_similar import trained


def extreme(dimensions: int) -> Vectors:
    """Return vectors near the centroids, far away from them, on squares' corners, and of many zeros."""
    rng = np.random.default_rng(0)
    vectors = people(2000, dimensions=dimensions)
    vectors[:50] *= 100
    vectors[50:100] = rng.integers(-8, 9, (50, dimensions)) / 64
    vectors[100:150, ::2] = 0
    return vectors.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("dimensions", [2, 7, 16, 30])
@pytest.mark.parametrize("rows", [700, 4096])
def test_a_grid_gives_the_codes_of_faiss(monkeypatch: pytest.MonkeyPatch, dimensions: int, rows: int) -> None:
    monkeypatch.setattr(grid, "_ROWS_AT_ONCE", rows)
    vectors = extreme(dimensions)
    book = trained(vectors[150:])
    assert (book.encode(vectors, Grid(book).codes) == book.encode(vectors)).all()


def test_equal_centroids_and_centroids_in_a_line_are_no_obstacle() -> None:
    vectors = extreme(6)
    centroids = np.zeros((3, 16, 2), np.float32)
    centroids[0] = np.linspace(-0.3, 0.3, 16)[:, None] * [1, 0]
    centroids[1, :8] = 0.25
    book = Codebook(centroids)
    points, codes = vectors.reshape(-1, 3, 2), Grid(book).codes(vectors)
    for part in range(3):
        distances = ((points[:, part, None] - centroids[part]) ** 2).sum(axis=2)
        assert np.allclose(
            distances[np.arange(len(points)), codes[part]], distances.min(1), rtol=1e-5, atol=1e-9
        )


def test_most_points_are_in_sure_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = people(4000, dimensions=32)
    found = Grid(trained(vectors))
    asked: list[float] = []
    monkeypatch.setattr(Grid, "_resolve", lambda self, vectors, codes: asked.append((codes == 255).mean()))
    found.codes(vectors)
    assert asked[0] < 0.15


def test_an_encoder_travels_and_gives_the_same_with_and_without_a_grid() -> None:
    vectors = extreme(16)
    book = trained(vectors[150:])
    few, many = Encoder(book), Encoder(book, PAYS_FROM)
    assert (few(vectors) == many(vectors)).all()
    assert (pickle.loads(pickle.dumps(many))(vectors) == few(vectors)).all()
