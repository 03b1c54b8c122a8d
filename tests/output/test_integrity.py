"""Damaged files of an output's own: each is named, with a way out, and finished parts stay."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.evaluation.comparison import compare
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.launch import launch, report
from cnnbatch.output.export import ExportOptions, export
from cnnbatch.report import write_report
from cnnbatch.storage import Storage
from cnnbatch.terminal.screen import Screen
from cnnbatch.training.worker import Recorder
from tests import tiny
from tests.conftest import jpeg
from tests.inference.test_run import QUIET, job, parts
from tests.output.test_ownership import a_study, stopped

NEW = RunOptions(new=True, quiet=True)
TEXTS = [b"", b"[]", b"{}", b"null", b"5", b'{"a": 1}', b"\xff\xfe\x00", b"a: [", b"task: 5", b"[" * 100_000]


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def damages(data: bytes) -> Iterator[bytes]:
    """Yield other contents for a file: none, a part, another type, other fields, other columns."""
    yield from (data[: len(data) // 2], data[:-1], parquet(pa.table({"x": [1, 2]})), *TEXTS)
    if data.startswith(b"{"):
        fields = json.loads(data)
        for name in fields:
            yield json.dumps({key: value for key, value in fields.items() if key != name}).encode()
            others: list[Any] = [None, [], "abc", -5]
            yield from (json.dumps({**fields, name: value}).encode() for value in others)
    if data.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(data))
        yield from (
            parquet(table.slice(0, 0)),
            parquet(table.slice(0, 1)),
            parquet(pa.concat_tables([table] * 2)),
        )
        for place, name in enumerate(table.schema.names):
            yield parquet(table.drop_columns([name]))
            yield parquet(table.set_column(place, name, pa.array(["x"] * len(table))))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output with truth, of which a later listing found a change, and a part is left to do."""
    folder = tmp_path_factory.mktemp("begun")
    for number in range(14):
        (folder / f"{number:02}.jpg").write_bytes(jpeg(number) if number != 5 else b"")
    lines = [f"{number:02}.jpg,class {number % 8}" for number in range(14)]
    (folder / "list.csv").write_text("\n".join(["file,species", *lines]))
    out = folder / "out"
    run(asked(out, 12), QUIET)
    (folder / "03.jpg").write_bytes(jpeg(4))
    os.utime(folder / "03.jpg", ns=(1, 5))
    run(asked(out, 13), NEW)
    (out / "predictions" / "part-00000001.parquet").unlink()
    (out / "_job" / "lock").write_text(json.dumps({"run": "x", "host": "elsewhere", "renewed": 0.0}))
    return out


def asked(out: Path, limit: int | None = 13) -> Any:
    chosen = {"shard_size": 4, "label": "species", "limit": limit}
    return job(out.parent / "list.csv", out, input=chosen, max_failed=1.0)


def readers(out: Path, good: Path) -> list[Callable[[], object]]:
    """Return all that reads an output."""
    found: list[Callable[[], object]] = [
        lambda: run(asked(out), QUIET),
        lambda: run(asked(out), NEW),
        lambda: run(asked(out, None), QUIET),
        lambda: write_report(str(out), Storage()),
        lambda: evaluate_again(str(out), [], Screen(True)),
        lambda: cnnbatch.open(str(out)).evaluation(),
        lambda: cnnbatch.open(str(out)).runs(),
        lambda: compare(str(out), str(good)),
        lambda: list(export(str(out), "csv", str(out / "rows.csv"), ExportOptions(None, False)).lines()),
    ]
    return found


def tried(out: Path, good: Path, name: str, data: bytes, reader: int) -> str:
    """Return what a reader says of an output whose file ``name`` holds something else; empty if nothing."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(good, out)
    (out / name).write_bytes(data)
    try:
        readers(out, good)[reader]()
        said = ""
    except UserError as error:
        said = str(error)
    if reader != 1:  # With --new a changed image replaces its part.
        assert {key: value for key, value in parts(out).items() if key in parts(good)} == parts(good)
    return said


RECORDS = "begun identity settings classes plan/00000/complete plan/00001/complete plan/00001/applied"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECORDS.split(), "settings/*", "runs/*"])
def test_a_record_that_is_none_is_named(name: str, begun: Path) -> None:
    if name == "classes":
        (begun / "_job" / "classes.json").write_text('{"names": ["class 1"]}')
    (path, *_) = sorted((begun / "_job").glob(f"{name}.json"))
    for data in (b"", b"[]", b"5", b"\xff\xfe\x00", path.read_bytes()[:-1]):
        reader = 3 if name == "runs/*" else 4 if name == "classes" else 1 if "plan" in name else 0
        said = tried(begun.parent / "damaged", begun, str(path.relative_to(begun)), data, reader)
        assert f"{path.name} is damaged: " in said
        assert "\n  what to do: " in said
    if name == "classes":
        path.unlink()


LOCKS = [
    b"",
    b"[]",
    b"\xff",
    b'{"run": "x", "host": 5}',
    b'{"run": "x", "host": "elsewhere", "renewed": "yesterday"}',
]


def test_counts_of_failures_that_are_none_are_named(begun: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = job(begun.parent, out)
    run(done, QUIET)
    for data in (b"", b"[]", b'{"rows": 3}', b'{"rows": 3, "failed": {"empty": -1}}'):
        (out / "_job" / "failed.json").write_bytes(data)
        with pytest.raises(UserError, match=r"failed\.json is damaged"):
            run(done, QUIET)


@pytest.mark.parametrize("name", ["_job/job.yaml", "_job/plan/00000/complete.json"])
def test_a_folder_in_place_of_a_file_is_no_traceback(name: str, begun: Path, tmp_path: Path) -> None:
    out = shutil.copytree(begun, tmp_path / "out")
    (out / name).unlink()
    (out / name).mkdir()
    done = CliRunner().invoke(app, ["report", str(out)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{out / name} is a folder, a file was expected\n  what to do: ")


@pytest.mark.parametrize("data", LOCKS)
def test_a_lock_that_does_not_say_whose_it_is_is_no_free_output(data: bytes, begun: Path) -> None:
    said = tried(begun.parent / "damaged", begun, "_job/lock", data, 0)
    assert "the lock" in said
    assert "delete that file" in said
    assert (begun.parent / "damaged" / "_job" / "lock").read_bytes() == data


def test_a_lock_with_another_process_number_is_no_traceback(begun: Path) -> None:
    import socket

    holder = {"run": "x", "host": socket.gethostname(), "process": "abc", "started": "1"}
    assert "the lock" in tried(begun.parent / "damaged", begun, "_job/lock", json.dumps(holder).encode(), 0)


@pytest.mark.parametrize("page", ["00000/00000", "00000/00001", "00001/00000", "00001/changes-00000"])
def test_a_page_of_the_plan_is_named(page: str, begun: Path) -> None:
    name = f"_job/plan/{page}.parquet"
    good = (begun / name).read_bytes()
    wrong = [b"", good[:-1], b"PAR1PAR1", parquet(pa.table({"shard": [0]}))]
    for data in wrong:
        said = tried(begun.parent / "damaged", begun, name, data, 0)
        assert f"{page}.parquet is damaged: " in said
    out = begun.parent / "damaged"
    shutil.rmtree(out)
    shutil.copytree(begun, out)
    if "changes" in page or page == "00000/00000":
        (out / name).unlink()
        with pytest.raises(UserError, match=rf"{page}\.parquet is missing"):
            run(asked(out), QUIET)


def test_pages_that_hold_shards_twice_are_refused(begun: Path) -> None:
    plan = begun / "_job" / "plan" / "00000"
    first = (plan / "00000.parquet").read_bytes()
    said = tried(begun.parent / "damaged", begun, "_job/plan/00000/00001.parquet", first, 0)
    assert "00001.parquet is damaged: expected the shards from 1 on" in said


@pytest.mark.slow
@pytest.mark.parametrize("reader", [3, 4, 5, 7])
def test_an_evaluation_that_is_none_is_named_or_left_out(reader: int, begun: Path) -> None:
    for data in (b"", b"[]", b'{"metrics": {"top1": 5}}', b"\xff"):
        said = tried(begun.parent / "damaged", begun, "evaluation.json", data, reader)
        if reader in (3, 4):  # The report says so on its page; evaluate writes it anew.
            assert said == ""
        else:
            assert "evaluation.json is damaged" in said
            assert "cnnbatch evaluate" in said


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"a: [", b"task: 5", b"!!int x", b"input: photos"])
def test_a_job_that_is_none_is_named(data: bytes, begun: Path) -> None:
    for reader in (3, 4, 7):
        assert "job.yaml is damaged" in tried(begun.parent / "damaged", begun, "_job/job.yaml", data, reader)


def test_a_part_of_the_truth_is_named(begun: Path) -> None:
    name = "_job/truth/part-00000002.parquet"
    good = pq.read_table(begun / name)
    wrong = [b"", b"PAR1PAR1", parquet(pa.table({"x": [1]})), parquet(good.slice(1))]
    for data in wrong:
        for reader in (4, 7):
            said = tried(begun.parent / "damaged", begun, name, data, reader)
            assert "part-00000002.parquet is damaged" in said


def test_files_of_other_programs_are_no_records(begun: Path) -> None:
    out = begun.parent / "damaged"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(begun, out)
    (out / "_job" / "suspects").mkdir(exist_ok=True)
    for folder in ("", "plan", "plan/00000", "suspects", "settings", "runs", "truth"):
        for name in (".DS_Store", "notes.txt"):
            (out / "_job" / folder / name).write_bytes(b"\x00\x01")
    assert run(asked(out), QUIET).images == 4
    write_report(str(out), Storage())


@pytest.mark.long
@pytest.mark.parametrize("reader", range(9))
def test_no_damage_is_a_traceback(reader: int, begun: Path) -> None:
    names = [str(path.relative_to(begun)) for path in begun.rglob("*") if path.is_file()]
    for name in sorted(name for name in names if name.startswith(("_job/", "evaluation"))):
        for data in damages((begun / name).read_bytes()):
            tried(begun.parent / f"damaged-{reader}", begun, name, data, reader)


# ---- trainings and studies ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a training that was stopped behind its first checkpoint."""
    folder = tmp_path_factory.mktemp("training")
    out = folder / "out"
    calls = []
    real = Recorder.step

    def second(recorder: Recorder, row: Any) -> None:
        calls.append(row)
        if row["epoch"] == 1:
            raise KeyError
        real(recorder, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "step", second)
        with pytest.raises(KeyError):
            launch(a_training(out), QUIET)
    return out


def a_training(out: Path) -> Any:
    photos = out.parent / "colours"
    if not photos.exists():
        tiny.colours(photos, 8)
    return tiny.job(photos, out, {"epochs": 2, "strategy": "auto"})


TRAINED = "training/identity.json training/data.json training/strategy.json training/train.parquet " \
    "training/validation.parquet"  # fmt: skip


@pytest.mark.parametrize("name", TRAINED.split())
def test_a_record_of_a_training_is_named(name: str, training: Path, tmp_path: Path) -> None:
    for data in (b"", b"[]", b"\xff", (training / "_job" / name).read_bytes()[:-1]):
        out = tmp_path / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(training, out)
        (out / "_job" / name).write_bytes(data)
        job = a_training(training)
        job = job.model_copy(update={"output": job.output.model_copy(update={"url": str(out)})})
        with pytest.raises(UserError, match=rf"{name.split('/')[1]} is damaged: (.|\n)*what to do"):
            launch(job, QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["000001-000000000.pt", "best.pt"])
def test_a_checkpoint_is_named(name: str, training: Path, tmp_path: Path) -> None:
    import torch

    whole = training / "_job" / "training" / "checkpoints" / name
    sink = io.BytesIO()
    torch.save([1], sink)
    for data in (b"", whole.read_bytes()[:-100], sink.getvalue(), None):
        out = tmp_path / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(training, out)
        path = out / whole.relative_to(training)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        job = a_training(training)
        job = job.model_copy(update={"output": job.output.model_copy(update={"url": str(out)})})
        said = ""
        try:
            launch(job, QUIET)
        except UserError as error:
            said = str(error)
        if said:
            assert "checkpoint" in said
            assert "what to do" in said
        else:  # Begun again, or the second epoch was the best.
            assert data is None or name == "best.pt"


@pytest.mark.slow
def test_records_of_a_study_are_named(tmp_path: Path) -> None:
    photos, out = tiny.colours(tmp_path / "colours", 6), tmp_path / "out"
    stopped("step", Recorder, a_study(photos, out))
    launch(a_study(photos, out), QUIET)
    for name in ("study.json", "trials/head.json"):
        path = out / "_job" / name
        good = path.read_bytes()
        for data in (b"", b"[]", b'{"name": "head"}' if "head" in name else b"5", b"\xff"):
            path.write_bytes(data)
            for reader in (
                lambda: launch(a_study(photos, out), QUIET),
                lambda: report(str(out), Storage()),
            ):
                with pytest.raises(UserError, match=rf"{path.name} is damaged"):
                    reader()
        path.write_bytes(good)
    path = out / "_job" / "job.yaml"
    for data in (b"", b"\xff\xfe", b"kind: map\ntask: {name: classify}\ninput: a\noutput: b"):
        path.write_bytes(data)
        with pytest.raises((UserError, EnvironmentFault), match=r"job\.yaml"):
            report(str(out), Storage())
