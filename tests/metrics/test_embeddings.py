"""Verification over all pairs of embedded pictures, however the pictures come."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.metrics import embeddings
from cnnbatch.metrics.embeddings import EmbeddedPictures


def pictures(count: int, classes: int) -> tuple[Any, list[str]]:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 4)).astype(np.float32), [
        f"c{one}" for one in rng.integers(0, classes, count)
    ]


def keys(count: int) -> list[str]:
    return [f"{number}.jpg" for number in range(count)]


def sorted_rows(found: EmbeddedPictures) -> list[tuple[Any, ...]]:
    return sorted(
        (int(one), *map(float, vector)) for one, vector in zip(found.classes, found.vectors, strict=True)
    )


@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(2, 40),
    st.integers(1, 9),
)
def test_any_split_gives_what_one_piece_gives(
    count: int, classes: int, cuts: list[int], most: int, each: int
) -> None:
    vectors, names = pictures(count, classes)
    edges = [0, *sorted(min(one, count) for one in cuts), count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "MOST", most)
        patch.setattr(embeddings, "EACH", each)
        whole = embeddings.partial(vectors, names, keys(count), "euclidean")
        parts = [
            embeddings.partial(vectors[a:b], names[a:b], keys(count)[a:b], "euclidean")
            for a, b in pairwise(edges)
        ]
        together = embeddings.merge([embeddings.merge(parts[:2]), *parts[2:]])
    assert sorted_rows(together) == sorted_rows(whole)
    assert together.left_out == whole.left_out == count - len(whole.classes)
    assert len(whole.classes) <= most


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_pairs_are_those_of_a_loop(distance: Any) -> None:
    vectors, names = pictures(12, 3)
    vectors[4] = np.nan
    found, one, other = embeddings.pairs(embeddings.partial(vectors, names, keys(12), distance))
    expected = []
    for i in range(12):
        for j in range(i + 1, 12):
            a, b = vectors[i].astype(float), vectors[j].astype(float)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            expected.append((i, j, -np.linalg.norm(a - b) if distance == "euclidean" else cosine))
    assert [(i, j) for i, j, _ in expected] == list(zip(one.tolist(), other.tolist(), strict=True))
    assert found.scores == pytest.approx([score for *_, score in expected], abs=1e-6, nan_ok=True)
    assert found.same.tolist() == [names[i] == names[j] for i, j, _ in expected]


def hardest_by_a_loop(vectors: Any, names: list[str], distance: str) -> list[tuple[str, str, bool, float]]:
    """Return the strangers that are most alike, then those of one class that are least, with their scores."""
    found = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            a, b = vectors[i].astype(float), vectors[j].astype(float)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            score = -np.linalg.norm(a - b) if distance == "euclidean" else cosine
            one, other = sorted([f"{i}.jpg", f"{j}.jpg"])
            found.append((one, other, names[i] == names[j], float(score)))
    strangers = sorted((pair for pair in found if not pair[2]), key=lambda pair: -pair[3])
    return [
        *strangers[: embeddings.HARDEST],
        *sorted((pair for pair in found if pair[2]), key=lambda pair: pair[3])[: embeddings.HARDEST],
    ]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("kept", [3, 1000])
def test_the_hardest_pairs_are_those_of_a_loop_in_whatever_order_pictures_come(
    monkeypatch: pytest.MonkeyPatch, distance: Any, kept: int
) -> None:
    monkeypatch.setattr(embeddings, "HARDEST", kept)
    vectors, names = pictures(20, 4)
    expected = hardest_by_a_loop(vectors, names, distance)
    for order in (np.arange(20), np.random.default_rng(0).permutation(20)):
        some = [
            embeddings.partial(
                vectors[rows], [names[row] for row in rows], [keys(20)[row] for row in rows], distance
            )
            for rows in (order[:7], order[7:])
        ]
        table = embeddings.result(embeddings.merge(some), fars=()).tables["hardest_pairs"]
        found = [(row["a"], row["b"], row["same"]) for row in table.to_pylist()]
        assert found == [pair[:3] for pair in expected]
        scores: Any = table["score"].to_pylist()
        assert scores == pytest.approx([pair[3] for pair in expected], abs=1e-6)


def test_pictures_that_failed_are_in_no_hardest_pair() -> None:
    vectors, names = pictures(6, 2)
    vectors[0] = np.nan
    table = embeddings.result(embeddings.partial(vectors, names, keys(6), "euclidean"), fars=()).tables[
        "hardest_pairs"
    ]
    assert "0.jpg" not in {*table["a"].to_pylist(), *table["b"].to_pylist()}
    assert table.num_rows == 10


def test_numbers_are_those_of_verification_by_hand() -> None:
    vectors = np.array([[0, 0], [0, 1], [5, 0], [5, 2]], np.float32)
    found = embeddings.result(
        embeddings.partial(vectors, ["a", "a", "b", "b"], keys(4), "euclidean"), fars=(0.5,)
    )
    assert next(iter(found.metrics)) == "EER"
    assert found.metrics["EER"].value == 0  # 1 and 2 apart; strangers at least 4.9.
    assert found.metrics["AUC"].value == 1
    assert found.metrics["verification_accuracy"].value == 1
    assert found.metrics["pairs"].value == 6


def test_a_few_large_classes_are_judged_by_some_of_their_pictures() -> None:
    vectors, names = pictures(3000, 2)
    found = embeddings.result(embeddings.partial(vectors, names, keys(3000), "euclidean"), fars=())
    judged = 2 * embeddings.EACH
    assert found.metrics["pairs"].value == judged * (judged - 1) / 2
    assert found.metrics["EER"].value is not None
    left_out = found.metrics["pictures_left_out"]
    assert (left_out.value, left_out.count) == (3000 - judged, 3000)
