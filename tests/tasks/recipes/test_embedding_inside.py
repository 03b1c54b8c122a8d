"""What a lesson shows of an embedding network, against distances by hand."""

from __future__ import annotations

import torch

from cnnbatch.tasks.recipes.embedding_inside import hardest_pairs, mined_triplets

PLACES = (0.0, 1.0, 1.5, 3.0)
"""Of four pictures on a line; the first two are of one person, the others of another."""
PEOPLE = torch.tensor([0, 0, 1, 1])


def seen() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the pictures, each of which has its number as its colour, and their embeddings."""
    return [torch.full((3, 2, 2), number, dtype=torch.uint8) for number in range(4)], torch.tensor(PLACES)[
        :, None
    ]


def test_the_hardest_of_the_mined_triplets_come_first() -> None:
    (strip,) = mined_triplets(*seen(), PEOPLE, "batch_hard")
    rows = [[(one.name, int(one.pixels[0, 0, 0])) for one in row] for row in strip.rows]
    assert rows == [
        [("anchor", 2), ("positive, distance 1.500", 3), ("negative, distance 0.500", 1)],
        [("anchor", 1), ("positive, distance 1.000", 0), ("negative, distance 0.500", 2)],
        [("anchor", 0), ("positive, distance 1.000", 1), ("negative, distance 1.500", 2)],
        [("anchor", 3), ("positive, distance 1.500", 2), ("negative, distance 2.000", 1)],
    ]


def test_without_two_people_there_is_nothing_to_mine() -> None:
    alike = torch.zeros(4, dtype=torch.int64)
    assert list(mined_triplets(*seen(), alike, "semi_hard")) == []
    assert list(hardest_pairs(*seen(), alike)) == []


def test_the_farthest_of_one_person_lie_beside_the_nearest_of_two() -> None:
    (strip,) = hardest_pairs(*seen(), PEOPLE)
    rows = [[int(one.pixels[0, 0, 0]) for one in row] for row in strip.rows]
    assert rows == [[2, 3, 1, 2], [0, 1, 0, 2]]
    assert [one.name for one in strip.rows[0]] == [
        "one class",
        "distance 1.500",
        "two classes",
        "distance 0.500",
    ]
