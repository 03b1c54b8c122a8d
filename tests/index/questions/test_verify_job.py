"""The job ``verify``: pairs of a list beside cosines by hand."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.index.calibrate import Known, calibrate
from cnnbatch.index.questions import verify as module
from cnnbatch.index.questions.verify import compare
from cnnbatch.index.search import open_index
from cnnbatch.inference.run import Summary
from cnnbatch.job import VerifyJob
from cnnbatch.launch import report
from cnnbatch.storage import Storage
from tests.embedded import QUIET
from tests.index.questions.test_questions import VECTORS, WHO, found, gallery, table

__all__ = ["found", "gallery"]  # Fixtures.


@pytest.fixture
def index(gallery: Path, tmp_path: Path) -> Path:
    place = Path(copytree(gallery, tmp_path / "index"))
    calibrate(open_index(str(place)), Known(people="folder"))
    return place


def verify(input: Path, index: Path, to: Path, pairs: Path, **more: Any) -> Summary:
    section = {"pairs": str(pairs), **more}
    places = {"input": {"url": str(input)}, "index": {"url": str(index)}, "output": {"url": str(to)}}
    return compare(VerifyJob.model_validate({**places, "verify": section, "max_failed": 1.0}), QUIET)


def listed(folder: Path, pairs: list[tuple[str, str]], same: list[int] | None = None) -> Path:
    """Write a list; return its path."""
    lines = ["a,b" if same is None else "a,b,same"]
    lines += [",".join([*pair, *([] if same is None else [str(same[n])])]) for n, pair in enumerate(pairs)]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def name(number: int) -> str:
    return f"{WHO[number]}/{number:03}.jpg"


def test_pairs_are_compared_decided_and_judged(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS_OF_A_PART", 7)
    rng = np.random.default_rng(2)
    numbers = [(int(a), int(b)) for a, b in rng.integers(0, len(WHO), (40, 2))]
    numbers += [(one, one + 1) for one in range(0, 60, 6)]
    same = [int(WHO[a] == WHO[b]) for a, b in numbers]
    pairs = listed(tmp_path, [(f"lists/{name(a)}", name(b)) for a, b in numbers], same)
    out = index.parent / "from"
    copytree(gallery_out(index), out)
    assert verify(out, index, tmp_path / "to", pairs, rate=1e-2).images == len(numbers)
    rows = table(tmp_path / "to")
    stored = VECTORS.astype(np.float16).astype(np.float64)
    cosines = [float(stored[a] @ stored[b]) for a, b in numbers]
    assert [one["similarity"] for one in rows] == pytest.approx(cosines, abs=1e-3)
    assert [one["id_b"] for one in rows] == [f"{name(b)}#0" for _, b in numbers]
    assert rows[0]["box_a"] == {"x1": 0.0, "y1": 5.0, "x2": 8.0, "y2": 13.0}
    threshold = rows[0]["threshold"]
    assert [one["is_same"] for one in rows] == [one["similarity"] >= threshold for one in rows]
    assert all(0 < one["probability"] < 1 for one in rows)
    metrics = cnnbatch.open(tmp_path / "to").evaluation().metrics
    assert metrics["accepted"].value == sum(one["is_same"] for one in rows)
    assert 0 <= metrics["EER"].value < 0.5
    assert verify(out, index, tmp_path / "to", pairs, rate=1e-2).images == 0
    (tmp_path / "to/predictions/part-00000002.parquet").unlink()
    assert verify(out, index, tmp_path / "to", pairs, rate=1e-2).images == 7
    assert table(tmp_path / "to") == rows
    with pytest.raises(UserError, match=r"verify\.rate"):
        verify(out, index, tmp_path / "to", pairs, rate=1e-3)


def gallery_out(index: Path) -> Path:
    """Return the output that the index was made of."""
    return Path(open_index(str(index)).manifest.outputs[0].url)


def test_a_pair_that_lacks_a_face_has_a_row_that_says_so(found: Path, gallery: Path, tmp_path: Path) -> None:
    names = ["p00/new000.jpg", "x/none.jpg", "x/bad.jpg", "x/gone.jpg", "nowhere.jpg"]
    pairs = listed(tmp_path, [(names[0], one) for one in names])
    summary = verify(found, gallery, tmp_path / "to", pairs)
    assert summary.failed == {"no_face": 3, "not_found": 1}
    rows = table(tmp_path / "to")
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert [one["error"] and one["error"]["code"] for one in rows] == [None, *["no_face"] * 3, "not_found"]
    assert [one["similarity"] is None for one in rows] == [False, True, True, True, True]
    assert {one["is_same"] for one in rows} == {None}
    assert "is not calibrated" in rows[0]["reason"]
    with pytest.raises(UserError, match="no report"):
        report(str(tmp_path / "to"), Storage())


def test_a_list_that_is_none_is_named(found: Path, gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a,c\nx,y\n")
    with pytest.raises(UserError, match="columns a and b"):
        verify(found, gallery, tmp_path / "to", tmp_path / "pairs.csv")
    with pytest.raises(UserError, match="can't be read"):
        verify(found, gallery, tmp_path / "to", tmp_path / "nothing.csv")
    (tmp_path / "pairs.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="has no pair"):
        verify(found, gallery, tmp_path / "to", tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_text("a,b\nx,\n")
    with pytest.raises(UserError, match="line 2"):
        verify(found, gallery, tmp_path / "to", tmp_path / "pairs.csv")
