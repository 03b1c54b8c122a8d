"""What the page counts, chooses and plots: the same however the rows are cut into parts."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.humanize import decimal, duration, percent
from cnnbatch.metrics.intervals import key_hashes
from cnnbatch.report import plots
from cnnbatch.report.tally import LEAST_SURE, SAMPLE, RowCounts
from tests.outputs import CLASSIFIED, START, bad, good

ROWS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["cat", "dog", None]), st.floats(0, 1, width=32) | st.none()),
        st.sampled_from(["empty", "truncated"]),
    ),
    min_size=1,
    max_size=120,
)


@given(rows=ROWS, cut=st.integers(0, 120))
def test_counts_and_choice_do_not_depend_on_the_parts(rows: list[Any], cut: int) -> None:
    batch = made_batch(rows)
    whole, first, second = RowCounts(), RowCounts(), RowCounts()
    whole.add(batch, 0, 0)
    first.add(batch.slice(0, cut), 0, 0)
    second.add(batch.slice(cut), 0, min(cut, batch.num_rows))
    second.merge(first)
    failures = [row for row in rows if isinstance(row, str)]
    labels = [row[0] for row in rows if not isinstance(row, str) and row[0]]
    scores = [row[1] for row in rows if not isinstance(row, str) and row[1] is not None]
    for tally in (whole, second):
        assert tally.rows == len(rows)
        assert tally.failed == Counter(failures)
        assert tally.labels == Counter(labels)
        assert tally.scores.sum() == len(scores)
        assert [place.rank for place in tally.least_sure.places] == sorted(scores)[:LEAST_SURE]
    assert whole.sample.places == second.sample.places
    assert whole.least_sure.places == second.least_sure.places
    hashes = key_hashes(map(str, batch["key"].to_pylist()))
    fine = sorted((hashes[n], n) for n, row in enumerate(rows) if not isinstance(row, str))[:SAMPLE]
    assert [place.row for place in whole.sample.places] == [n for _, n in fine]


def made_batch(rows: list[Any]) -> pa.RecordBatch:
    made = [
        bad(f"{n}", row, "message") if isinstance(row, str) else {"label": row[0], "score": row[1]}
        for n, row in enumerate(rows)
    ]
    made = [{"key": f"{n}", "uri": "", "vanished": False, **row} for n, row in enumerate(made)]
    return pa.RecordBatch.from_pylist(made, CLASSIFIED)


def test_vanished_images_are_counted_but_not_shown() -> None:
    rows = [{**good(f"{n}", "", [("cat", 0.5)]), "vanished": n == 1} for n in range(3)]
    tally = RowCounts()
    tally.add(pa.RecordBatch.from_pylist(rows, CLASSIFIED), 0, 0)
    assert (tally.rows, tally.vanished, tally.labels["cat"]) == (3, 1, 2)
    assert {place.row for place in tally.sample.places} == {0, 2}


def test_free_text_labels_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.report.tally.MOST_LABELS", 10)
    tally = RowCounts()
    for start in range(0, 100, 5):
        rows = [good(f"{n}", "", [(f"{n}" if n % 2 else "often", 0.5)]) for n in range(start, start + 5)]
        tally.add(pa.RecordBatch.from_pylist(rows, CLASSIFIED), 0, start)
    assert len(tally.labels) <= 20
    assert tally.labels["often"] == 50


def spans(*work: tuple[float, float, int]) -> list[plots.PartSpan]:
    return [
        plots.PartSpan(START + timedelta(seconds=a), START + timedelta(seconds=b), rows)
        for a, b, rows in work
    ]


@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.floats(0, 1e3), st.integers(0, 10_000)).map(
            lambda work: (work[0], work[0] + work[1], work[2])
        ),
        min_size=1,
        max_size=30,
    )
)
def test_the_timeline_holds_every_image_and_only_time_at_work(work: list[tuple[float, float, int]]) -> None:
    timeline = plots.timeline(spans(*work))
    assert timeline is not None
    assert timeline.images == sum(rows for _, _, rows in work)
    assert timeline.rates.sum() * timeline.seconds / plots.BINS == pytest.approx(timeline.images, rel=1e-6)
    assert timeline.seconds <= sum(end - start for start, end, _ in work) + 60.01 * len(work)
    assert all(0 < pause < 1 for pause in timeline.pauses)


def test_a_pause_between_runs_is_cut_out() -> None:
    timeline = plots.timeline(spans((0, 10, 100), (5, 10, 50), (5000, 5030, 600)))
    assert timeline is not None
    assert timeline.seconds == pytest.approx(40)
    assert timeline.pauses == pytest.approx((0.25,))
    assert timeline.rates[0] == pytest.approx(10)
    assert timeline.rates[20] == pytest.approx(20)
    assert timeline.rates[-1] == pytest.approx(20)
    assert plots.timeline([]) is None


@given(st.floats(1e-6, 1e9))
def test_an_axis_ends_little_above_the_greatest_value(value: float) -> None:
    assert value * (1 - 1e-6) <= plots.nice_top(value) <= 2.01 * value


def test_plots_stay_in_their_frame() -> None:
    drawn = plots.area([0.0, 5.0, 10.0], 10.0, (0.5,), 5.0)
    numbers = [float(number) for number in re.findall(r"[HVM](-?[\d.]+)", drawn)]
    assert min(numbers) == 0
    assert max(numbers) == plots.WIDTH
    assert plots.columns([0, 2, 4]).count("<rect") == 2


def test_words() -> None:
    assert [percent(score) for score in (0, 0.0004, 0.038, 0.95, 0.9999, 1)] == [
        "0 %",
        "< 0.1 %",
        "3.8 %",
        "95 %",
        "> 99 %",
        "100 %",
    ]
    assert [decimal(value) for value in (0, 0.04567, 12.34, 99.96, 1234567)] == [
        "0",
        "0.0457",
        "12.3",
        "100",
        "1,234,567",
    ]
    times = [duration(s) for s in (0, 0.0024, 9.96, 42.4, 192, 7500, 273_600)]
    assert times == ["0", "2.4 ms", "10 s", "42 s", "3 min 12 s", "2 h 05 min", "3 d 4 h"]
