"""Who is to blame, decided without Ray: the bookkeeping of attempts, strikes and places."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.cluster.nodes import Node, Share, placements
from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.driver.retries import (
    BACKOFFS_S,
    MOST_ATTEMPTS,
    NODE_STRIKES,
    Alone,
    Attempts,
    Probe,
    Strikes,
)
from cnnbatch.inference.messages import Work
from cnnbatch.inference.worker.journal import Journal, suspects
from cnnbatch.types import Failure, ImageRef, Shard

WORK = Work(Shard(0, tuple(ImageRef(str(number), "") for number in range(10))))
CRASH = Failure("predict", "crash", "")


def answer_all(attempts: Attempts, guilty: set[int]) -> None:
    while isinstance(question := attempts.next_question(), Alone):
        attempts.answered(question, CRASH if question.position in guilty else None)


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9)))
def test_only_suspects_that_fail_alone_are_condemned(asked: set[int], guilty: set[int]) -> None:
    attempts = Attempts()
    attempts.failed(WORK, sorted(asked), "")
    assert attempts.next_work() is None
    answer_all(attempts, guilty)
    again = attempts.next_work()
    assert again is not None
    assert set(again.condemned) == asked & guilty
    assert len(attempts) == 0


def test_a_probe_is_tried_on_its_node_or_the_suspect_elsewhere() -> None:
    attempts = Attempts()
    attempts.failed(WORK, [1], "")
    suspect = attempts.next_question("a")
    assert isinstance(suspect, Alone)
    attempts.ask(Probe(suspect, CRASH, "a"))
    assert attempts.probed_nodes() == {"a"}
    assert attempts.next_question("b") is None
    attempts.give_up_node("a")
    assert attempts.next_question("b") == suspect


def test_a_shard_without_suspects_is_run_again_and_charged_nothing() -> None:
    attempts = Attempts()
    for _ in range(100):
        attempts.failed(WORK, [], "")
        assert attempts.next_work() == WORK


def test_a_shard_that_fails_for_ever_stops_the_run() -> None:
    attempts = Attempts()
    for _ in range(MOST_ATTEMPTS):
        attempts.failed(WORK, [3], "")
        answer_all(attempts, set())
        attempts.next_work()
    with pytest.raises(EnvironmentFault, match="each of its images passes alone"):
        attempts.failed(WORK, [3], "")


def test_a_node_that_fails_what_others_do_is_left_out() -> None:
    strikes = Strikes()
    strikes.succeeded("good")
    left_out = [strikes.failed("bad", ["good", "bad"]) for _ in range(NODE_STRIKES)]
    assert left_out == [False] * (NODE_STRIKES - 1) + [True]
    assert strikes.left_out == {"bad"}


def test_where_all_nodes_fail_the_run_backs_off_then_stops() -> None:
    strikes = Strikes()
    pauses = []
    for number in range(20):
        assert not strikes.failed(f"node {number % 2}", ["node 0", "node 1"])
        pauses.append(strikes.pause_s())
    assert [pause for pause in pauses if pause] == list(BACKOFFS_S)
    assert pauses[-1] is None


def test_a_success_forgets_the_back_off() -> None:
    strikes = Strikes()
    for _ in range(NODE_STRIKES + 1):
        strikes.failed("node", ["node"])
        strikes.pause_s()
    strikes.succeeded("node")
    strikes.failed("node", ["node"])
    assert strikes.pause_s() == 0.0


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), max_size=5),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]),
)
def test_no_node_is_given_more_workers_than_it_holds(
    sizes: list[tuple[int, int]], cpus: int, gpus: float
) -> None:
    nodes = [Node(str(number), "", float(c), float(g)) for number, (c, g) in enumerate(sizes)]
    share = Share(cpus, gpus)
    room = {node.id: share.fits(node) for node in nodes}
    order = placements(nodes, {}, room)
    for node in nodes:
        count = order.count(node.id)
        assert count * cpus <= node.cpus
        assert count * gpus <= node.gpus or not gpus
        assert count == room[node.id]
    assert placements(nodes, {node.id: room[node.id] for node in nodes}, room) == []


def test_a_journal_tells_what_was_under_way(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert suspects(journal.path) == {}
    with journal.decoding(7, 3):
        assert suspects(journal.path) == {7: [3]}
        with journal.predicting(6, [1, 2, 3]):
            assert suspects(journal.path) == {6: [1, 2, 3], 7: [3]}
            assert journal.busy()
        assert suspects(journal.path) == {7: [3]}
    assert suspects(journal.path) == {}
    assert not journal.busy()
    assert journal.progress == 2
