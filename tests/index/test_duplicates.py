"""Near duplicates beside brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.index import duplicates
from cnnbatch.index.duplicates import Groups, similar_pairs
from tests.embedded import build, people, write_pictures
from tests.index.test_index_build import opened


@given(st.integers(1, 30), st.lists(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=20)))
def test_what_is_connected_is_one_group_however_it_comes(
    count: int, batches: list[list[tuple[int, int]]]
) -> None:
    groups, linked = Groups(count), [{number} for number in range(count)]
    for batch in batches:
        pairs = [(a % count, b % count) for a, b in batch]
        groups.connect((np.array([a for a, _ in pairs], int), np.array([b for _, b in pairs], int)))
        for a, b in pairs:
            whole = linked[a] | linked[b]
            for one in whole:
                linked[one] = whole
    assert groups.first().tolist() == [min(one) for one in linked]


@pytest.mark.parametrize("block", [7, 4096])
def test_every_similar_pair_is_found_once(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", block)
    vectors = people(60).astype(np.float16)
    rows = np.flatnonzero(np.arange(60) % 5)
    done: list[int] = []
    found = [
        pair for a, b in similar_pairs(vectors, rows, 0.6, done.append) for pair in zip(a, b, strict=True)
    ]
    scores = vectors[rows].astype(np.float64) @ vectors[rows].astype(np.float64).T
    assert sorted(found) == sorted((a, b) for a, b in np.argwhere(scores >= 0.6).tolist() if a < b)
    assert sum(done) == len(rows)


def index_with_copies(tmp_path: Path) -> Path:
    """Return an index of 80 different vectors, of which some come two or three times, nearly."""
    vectors = np.concatenate([people(80, each=1), people(80, each=1)[[3, 3, 50]]])
    vectors[80:] += np.random.default_rng(1).normal(0, 0.01, (3, 16)).astype(np.float32)
    write_pictures(tmp_path / "out", vectors)
    build(tmp_path / "out", tmp_path / "index")
    return tmp_path / "index"


def test_groups_are_listed_with_their_rows(tmp_path: Path) -> None:
    found = opened(index_with_copies(tmp_path)).duplicates(0.98).to_pylist()
    assert [(row["group"], row["id"]) for row in found] == [
        (0, "p000003.jpg"),
        (0, "p000080.jpg"),
        (0, "p000081.jpg"),
        (1, "p000050.jpg"),
        (1, "p000082.jpg"),
    ]
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert all(0.98 <= row["similarity"] < 1.002 for row in found)
    assert found[0]["output"] == str(tmp_path / "out")


def test_the_command_writes_parquet(tmp_path: Path) -> None:
    place, to = index_with_copies(tmp_path), tmp_path / "groups.parquet"
    words = ["index", "duplicates", str(place), "--similarity", "0.98", "--to", str(to)]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "5 embeddings in 2 groups" in done.output) == (0, True), done.output
    assert pq.read_table(to)["group"].to_pylist() == [0, 0, 0, 1, 1]
    assert CliRunner().invoke(app, words).exit_code == 2  # the file is there
    words[-1] = str(tmp_path / "none.parquet")
    words[4] = "0.99999"
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, "0 embeddings in 0 groups" in done.output) == (0, True)
    assert pq.read_table(words[-1]).num_rows == 0


def test_a_similarity_is_a_cosine(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a cosine above 0 and at most 1, got 95"):
        opened(index_with_copies(tmp_path)).duplicates(95)
