"""What installed packages bring by entry points: found by name, and named with the package where it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import cnnbatch
from cnnbatch.config import entries
from cnnbatch.config.entries import Entries
from cnnbatch.config.yaml import dump
from cnnbatch.errors import UserError
from cnnbatch.inference.autotune import agreement as guard
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob, TrainJob, job_schema
from cnnbatch.output.folder import Output
from cnnbatch.sources.formats import FORMATS, SourceFormat, known_format
from cnnbatch.storage import Storage
from cnnbatch.tasks import registry
from cnnbatch.tasks.registry import task_class, task_names
from cnnbatch.training.data.dataset import collect
from cnnbatch.training.data.splits import Parts
from tests.jobs import load_job, parse_job

COUNTING = '''
"""Counts: one number an image."""

from dataclasses import dataclass

import pyarrow as pa

from cnnbatch.sources.files.source import Files
from cnnbatch.sources.formats import SourceFormat
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.tasks import Task


class Count(Task):
    name: str = "count"
    offset: float = 0.0

    def columns(self):
        return pa.schema([("number", pa.float64())])

    def load(self, runtime):
        return Model(self)

    def recipe(self, spec, data):
        """Never called here."""


class Model:
    identity = {"weights": "none", "preprocessing": "none", "library": "counting 1"}

    def __init__(self, task):
        self.task = task

    def decode_size(self, size):
        return None

    def prepare(self, image):
        from cnnbatch.types import Prepared

        return [Prepared(image.pixels[:, :4, :4], (4, 4))]

    def forward(self, batch, sizes):
        return {"number": batch.float().mean((1, 2, 3)) + self.task.offset}

    def rows(self, images, prepared, outputs):
        numbers = pa.array([float(one[0]["number"]) for one in outputs], pa.float64())
        return pa.RecordBatch.from_arrays([numbers], schema=self.task.columns())


@dataclass(frozen=True)
class Counted(SourceWrapper):
    truth_schema: pa.Schema = pa.schema([("image_id", pa.string()), ("number", pa.float64())])

    def truth(self, shard):
        numbers = [float(len(ref.key)) for ref in shard.refs]
        return pa.table([[ref.key for ref in shard.refs], numbers], schema=self.truth_schema)


def open_counted(input, storage):
    return Counted(Files(storage, (input.url,)))


FORMAT = SourceFormat(open_counted, labelled=False)
'''


class Distribution:
    """A package by its name."""

    def __init__(self, name: str) -> None:
        self.name = name


def point(name: str, value: str, package: str = "counting") -> EntryPoint:
    found = EntryPoint(name, value, entries.GROUP)
    vars(found)["dist"] = Distribution(package)
    return found


def all_entries() -> list[Entries[Any]]:
    """Return the dictionaries of all layers, which are values of their modules."""
    modules = [module for name, module in [*sys.modules.items()] if name.startswith("cnnbatch")]
    found = {id(one): one for module in modules for one in vars(module).values() if type(one) is Entries}
    return [*found.values()]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install packages' entry points, as if nothing had asked for any before."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "counting.py").write_text(COUNTING)
    (tmp_path / "site" / "broken.py").write_text("raise RuntimeError('no such library')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(*points: EntryPoint) -> None:
        monkeypatch.setattr(entries, "points", lambda: points)
        for one in all_entries():
            for name, value in (("_brought", None), ("_loaded", {}), ("_failed", {})):
                monkeypatch.setattr(one, name, value)
        registry._tasks.cache_clear()
        entries._say_once.cache_clear()

    yield install
    registry._tasks.cache_clear()
    sys.modules.pop("counting", None)


COUNT = point("tasks.count", "counting:Count")
COUNTED = point("sources.counted", "counting:FORMAT")
Install = Callable[..., None]


# ---- entries ----------------------------------------------------------------------------------


def test_own_entries_come_first_and_others_are_imported_when_they_are_asked_for(installed: Install) -> None:
    installed(point("sources.more", "counting:FORMAT"), point("metrics.other", "broken:x"))
    found = Entries("sources", {"own": SourceFormat("x:y")}, SourceFormat)
    assert found.names() == ["own", "more"]
    assert found.among(["number", "own"]) == ["own"]
    assert "counting" not in sys.modules
    assert list(found) == ["own", "more"]
    assert len(found) == 2
    assert found["more"].opener.__name__ == "open_counted"  # type: ignore[union-attr]
    assert found.problem("more") is None
    assert found.problem("nothing") is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("broken:x", "broken:x cannot be imported: RuntimeError: no such library"),
        ("no_such_module:x", "no_such_module:x cannot be imported: ModuleNotFoundError: "),
        ("counting:NOTHING", "counting:NOTHING cannot be imported: AttributeError: "),
        ("counting:Count", "counting:Count is <class 'counting.Count'>, expected a SourceFormat"),
    ],
)
def test_a_broken_entry_is_named_with_its_package_once_and_the_rest_works(
    installed: Install, capsys: pytest.CaptureFixture[str], value: str, why: str
) -> None:
    installed(point("sources.bad", value, "badly-made"), COUNTED)
    found: Entries[SourceFormat] = Entries("sources", {}, SourceFormat)
    assert list(found) == ["counted"]
    assert "bad" not in found
    assert (found.problem("bad") or "").startswith(f"badly-made brings sources.bad, but {why}")
    said = capsys.readouterr().err
    assert said.count("badly-made brings sources.bad, but") == 1
    assert "it is left out" in said


def test_a_name_that_is_taken_is_left_out_and_both_packages_are_named(
    installed: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(
        point("sources.files", "broken:x", "late"),
        COUNTED,
        point("sources.counted", "broken:x", "second"),
    )
    assert callable(FORMATS["counted"].opener)
    assert FORMATS["files"].fields == ("inventory", "suffixes")
    assert FORMATS.names().count("files") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "late brings sources.files, which cnnbatch has; it is left out" in said
    assert "second brings sources.counted, which counting has; it is left out" in said
    assert "broken" not in sys.modules


# ---- sources ----------------------------------------------------------------------------------


def job(tmp_path: Path, photos: Path, **input: Any) -> dict[str, Any]:
    return {
        "task": {"name": "count", "offset": 1.0},
        "input": {"url": str(photos), "format": "counted", **input},
        "output": str(tmp_path / "out"),
        "compute": {"pool": "inline"},
    }


def test_a_job_with_an_installed_task_and_source_runs(
    installed: Install, tmp_path: Path, photos: Callable[[int], Path]
) -> None:
    installed(COUNT, COUNTED)
    fields = job(tmp_path, photos(5))
    jsonschema.validate(fields, job_schema())
    run(MapJob.model_validate(fields), RunOptions(quiet=True))
    out = Output(str(tmp_path / "out"), Storage())
    rows = cnnbatch.open(out.uri).arrow(["key", "number", "error"])
    assert rows["number"].null_count == 0
    assert rows["error"].null_count == 5
    truth: Any = pq.read_table(out.truth(0))
    assert truth.schema.names == ["image_id", "number"]
    keys: list[Any] = rows["key"].to_pylist()
    assert truth["number"].to_pylist() == [float(len(key)) for key in keys]
    # Data may name what is installed; without the package its job says what is lacking.
    file = str(tmp_path / "out" / "_job" / "job.yaml")
    assert load_job(file).task.name == "count"
    installed(COUNTED)
    with pytest.raises(UserError, match="no task is called 'count'"):
        load_job(file)
    installed(COUNT)
    with pytest.raises(UserError, match='input.format: expected auto, files, .*, got "counted"'):
        load_job(file)


def test_an_unknown_format_names_the_nearest_and_a_broken_one_its_package(
    installed: Install, tmp_path: Path, photos: Callable[[int], Path]
) -> None:
    installed(COUNT, COUNTED, point("sources.bad", "broken:x", "badly-made"))
    folder = photos(1)
    with pytest.raises(UserError, match=r"job:\d+: input\.format: expected auto, .*did you mean counted\?"):
        parse_job(dump(job(tmp_path, folder, format="countd")), "job")
    with pytest.raises(UserError, match=r"badly-made brings sources\.bad, but broken:x cannot be imported"):
        parse_job(dump(job(tmp_path, folder, format="bad")), "job")
    with pytest.raises(UserError, match=r"input\.keep: .* is read as counted, which has no use for it"):
        run(MapJob.model_validate(job(tmp_path, folder, keep=["a"])), RunOptions(quiet=True))
    assert known_format("counted") == "counted"
    enum = job_schema()["$defs"]["Input"]["anyOf"][1]["properties"]["format"]["enum"]
    assert {"auto", "files", "counted"} <= set(enum)


# ---- tasks ------------------------------------------------------------------------------------


def test_unknown_tasks_name_the_nearest_of_all_and_broken_ones_their_package(installed: Install) -> None:
    installed(
        COUNT,
        point("tasks.bad", "broken:Task", "badly-made"),
        point("tasks.classify", "counting:Count", "late"),
    )
    assert {"classify", "count", "detect"} < set(task_names())
    assert "bad" not in task_names()
    assert task_class("count").__module__ == "counting"
    assert task_class("classify").__module__ == "cnnbatch.tasks.classify"
    with pytest.raises(UserError, match=r"did you mean count\?; known: bad, classify, count, "):
        task_class("coun")
    with pytest.raises(
        UserError, match=r"badly-made brings tasks\.bad, but .* RuntimeError: no such library"
    ):
        task_class("bad")


# ---- other layers -----------------------------------------------------------------------------


def test_ground_truth_of_another_kind_is_collected_for_training(
    installed: Install, tmp_path: Path, photos: Callable[[int], Path]
) -> None:
    installed(COUNT, COUNTED)
    training = TrainJob.model_validate({**job(tmp_path, photos(20)), "kind": "train"})
    parts = [training.input.model_copy(update={"limit": count}) for count in (12, 5)]
    found = collect(training, Parts(parts[0], parts[1], None, "cut"), Output(str(tmp_path / "o"), Storage()))
    assert (found.data.classes, found.data.images, found.validation.table.num_rows) == ((), 12, 5)


def test_numbers_are_guarded_by_a_tolerance() -> None:
    numbers = torch.linspace(0, 100, 50)
    reference, near, other = (
        [{"number": one, "place": torch.tensor(1)} for one in values]
        for values in (numbers, numbers * 1.001, numbers + 10)
    )
    assert guard.agreement(reference, near) == {"numbers that agree": 1.0}
    assert guard.beyond(guard.agreement(reference, near)) == ""
    assert "numbers that agree" in guard.beyond(guard.agreement(reference, other))
    assert guard.agreement([{"number": 1}], [{"number": 1}]) == {}


def test_a_package_guards_its_own_kind(installed: Install, tmp_path: Path) -> None:
    (tmp_path / "site" / "guarding.py").write_text(
        "from cnnbatch.inference.autotune.agreement import Limit, PrecisionGuard\n\n\n"
        "class Guard(PrecisionGuard):\n"
        "    outputs = frozenset({'number'})\n"
        "    limits = {'largest difference': Limit(0.5, at_least=False)}\n\n"
        "    def measure(self, reference, found, threshold):\n"
        "        pairs = zip(reference, found)\n"
        "        return {'largest difference': max(abs(a['number'] - b['number']) for a, b in pairs)}\n"
    )
    installed(point("autotune.number", "guarding:Guard"))
    measured = guard.agreement([{"number": 1.0}], [{"number": 2.0}])
    assert guard.beyond(measured) == "largest difference 1, at most 0.5"


def test_labels_and_objects_are_not_all_that_a_truth_may_be() -> None:
    from cnnbatch.truth.problems import check_sizes

    table = pa.table({"image_id": ["a"], "number": [1.0], "width": [3], "height": [4], "problem": [None]})
    assert check_sizes(table, [(9, 9)]).equals(table)
