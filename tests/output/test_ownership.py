"""What an output was begun for: nothing unfinished is taken for another job's, whenever a run was ended."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.inference.worker_process import WorkerProcess
from cnnbatch.job import StudyJob
from cnnbatch.launch import launch
from cnnbatch.storage import Entry, Storage
from cnnbatch.training.worker import Recorder
from tests import tiny
from tests.inference.test_new import whole
from tests.inference.test_run import QUIET, job, parts

Photos = Callable[[int], Path]
running = importlib.import_module("cnnbatch.inference.run")


class Stopped(Exception):
    """Stands for the end of the process."""


def stop(*_: Any, **__: Any) -> Iterator[Any]:
    raise Stopped


def stopped(patch: str, owner: Any, spec: Any) -> None:
    """Run a job that ends where it first comes to ``patch``."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(owner, patch, stop)
        with pytest.raises(Stopped):
            launch(spec, QUIET)


def listed(folder: Path, name: str = "list.csv", every: int = 1) -> Path:
    """Write a list of pictures with their classes and sites."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))[::every]
    lines = [f"{one},id{number},class {number % 8},north" for number, one in enumerate(names)]
    (folder / name).write_text("\n".join(["uri,id,species,site", *lines]))
    return folder / name


OTHERS: list[dict[str, Any]] = [
    {"url": "other.csv"},
    {"limit": 7},
    {"sample": 0.4},
    {"key": "id"},
    {"label": "species"},
    {"keep": ["site"]},
    {"label": "species", "classes": ["class 1", "class 2"]},
    {"subset": {"part": "test", "test": 0.5}},
    {"shard_size": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS, ids=lambda other: "-".join(other))
def test_a_plan_without_a_part_is_not_another_jobs(
    other: dict[str, Any], photos: Photos, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out, fresh = photos(24), tmp_path / "out", tmp_path / "fresh"
    first = listed(folder)
    listed(folder, "other.csv", every=3)
    chosen = {**other, **({"url": str(folder / other["url"])} if "url" in other else {})}
    stopped("predict_inline", running, job(first, out, input={"label": "species"}))
    assert (out / "_job" / "plan" / "00000" / "complete.json").exists()
    asked = job(first, out, input=chosen, max_failed=1.0)
    run(asked)
    said = capfd.readouterr().err
    run(asked.model_copy(update={"output": asked.output.model_copy(update={"url": str(fresh)})}), QUIET)
    assert whole(out) == whole(fresh)
    assert len(parts(out)) == len(parts(fresh))
    truths = [sorted(path.name for path in (one / "_job").glob("truth/*")) for one in (out, fresh)]
    assert truths[0] == truths[1]
    if "shard_size" not in other and chosen != {"label": "species"}:
        assert said.count("is discarded") == 1
        assert f"input.{list(other)[-1]}" in said


def test_a_listing_that_was_stopped_is_not_another_jobs(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(30), tmp_path / "out"
    shutil.copytree(folder / "album-0", tmp_path / "few")
    listing = Storage.list

    def breaks(self: Storage, uri: str, after: str | None = None) -> Iterator[Entry]:
        for number, entry in enumerate(listing(self, uri, after)):
            if number == 20 and uri.endswith("photos"):
                raise Stopped
            yield entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "list", breaks)
        patch.setattr(running, "predict_inline", stop)
        with pytest.raises(Stopped):
            run(job(folder, out), QUIET)
    assert run(job(tmp_path / "few", out), QUIET).total == 10
    assert len(whole(out)) == 10


def test_the_same_job_goes_on_with_its_plan(
    photos: Photos, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(24), tmp_path / "out"
    stopped("predict_inline", running, job(folder, out))
    page = out / "_job" / "plan" / "00000" / "00000.parquet"
    before = page.stat().st_mtime_ns
    run(job(folder, out))
    assert page.stat().st_mtime_ns == before
    assert "discarded" not in capfd.readouterr().err


def test_settings_suspects_and_truth_of_another_job_are_discarded(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(24), tmp_path / "out"
    run(job(listed(folder), out, input={"label": "species"}), QUIET)
    shutil.rmtree(out / "predictions")
    (out / "_job" / "suspects").mkdir(exist_ok=True)
    (out / "_job" / "suspects" / "0.json").write_text("{}")
    (out / "_job" / "settings" / "mps-fp32.json").write_text('{"device": "mps"}')
    run(job(folder, out), QUIET)
    assert not (out / "evaluation.json").exists()
    assert not list((out / "_job" / "truth").glob("*"))
    assert not list((out / "_job" / "suspects").glob("*"))
    assert len(list((out / "_job" / "runs").glob("*.json"))) == 1
    assert not (out / "_job" / "settings" / "mps-fp32.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0, 1, 4, 9])
def test_a_run_that_ends_while_it_discards_leaves_nothing_wrong(
    moment: int, photos: Photos, tmp_path: Path
) -> None:
    folder, fresh = photos(40), tmp_path / "fresh"
    shutil.copytree(folder / "album-0", tmp_path / "few")
    run(job(folder, fresh), QUIET)
    for again in (folder, tmp_path / "few"):
        out = tmp_path / f"out-{again.name}"
        stopped("predict_inline", running, job(folder, out))
        delete, left = Storage.delete, [moment]

        def ends(
            self: Storage, uri: str, left: list[int] = left, delete: Callable[..., None] = delete
        ) -> None:
            if not uri.endswith("lock"):
                left[0] -= 1
                if left[0] < 0:
                    raise Stopped
            delete(self, uri)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Storage, "delete", ends)
            patch.setattr(running, "predict_inline", stop)
            with pytest.raises(Stopped):
                run(job(tmp_path / "few", out), QUIET)
        run(job(again, out), QUIET)
        expected = whole(fresh)
        if again.name == "few":
            expected = {key.split("/")[1]: row for key, row in expected.items() if key.startswith("album-0")}
        assert whole(out).keys() == expected.keys()


def half_done(folder: Path, out: Path, **chosen: Any) -> dict[str, bytes]:
    """Make an output of which one part is left to do."""
    run(job(folder, out, input=chosen), QUIET)
    (out / "predictions" / "part-00000001.parquet").unlink()
    return parts(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"url": "few"}, r"input\.url: the output has '.*/photos', this job has '.*/few'"),
        ({"label": r"album-(\d)"}, {}, r"input\.label: the output has 'album-\(\S+', this job has None"),
        (
            {"label": r"album-(\d)", "classes": ["1", "0"]},
            {"label": r"album-(\d)"},
            r"input\.classes: .*None",
        ),
        (
            {"subset": {"part": "train"}},
            {},
            r"input\.subset\.part: the output has 'train', this job has None",
        ),
    ],
)
def test_another_job_is_refused_where_a_part_is_finished(
    before: dict[str, Any], after: dict[str, Any], words: str, photos: Photos, tmp_path: Path
) -> None:
    folder, out = photos(40), tmp_path / "out"
    shutil.copytree(folder / "album-0", tmp_path / "few")
    kept = half_done(folder, out, **before)
    after = {**after, **({"url": str(tmp_path / "few")} if "url" in after else {})}
    for options in (QUIET, RunOptions(new=True, quiet=True)):
        with pytest.raises(UserError, match=words):
            run(job(folder, out, input=after), options)
    assert parts(out) == kept


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["recorded", "of an earlier version"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"sample": 0.3}, {}),
        ({"limit": 12}, {"limit": 30}),
        ({}, {"limit": 30}),
        ({"sample": 0.3}, {"sample": 0.8}),
    ],
)
def test_a_listing_that_chose_otherwise_misses_no_image(
    before: dict[str, Any], after: dict[str, Any], known: bool, photos: Photos, tmp_path: Path
) -> None:
    folder, out, fresh = photos(40), tmp_path / "out", tmp_path / "fresh"
    run(job(folder, out, input={**before, "shard_size": 3}), QUIET)
    plan = out / "_job" / "plan" / "00000"
    (plan / "complete.json").unlink()  # As where the listing was stopped behind its second page.
    for page in sorted(plan.glob("*.parquet"))[2:]:
        page.unlink()
    for part in sorted((out / "predictions").glob("*"))[3:]:
        part.unlink()
    if not known:
        (out / "_job" / "begun.json").unlink()
    run(job(folder, out, input={**after, "shard_size": 3}), QUIET)
    run(job(folder, fresh, input={**after, "shard_size": 3}), QUIET)
    assert set(whole(fresh)) <= set(whole(out))
    assert run(job(folder, out, input={**after, "shard_size": 3}), QUIET).images == 0


def test_a_part_of_a_run_that_had_not_ended_is_not_taken_for_this_jobs(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, other = photos(24), tmp_path / "out", tmp_path / "other"
    run(job(folder, other, {"seed": 5}), QUIET)
    predict = WorkerProcess.run

    def beside(process: WorkerProcess, work: Any) -> Any:
        shutil.copytree(other / "predictions", out / "predictions", dirs_exist_ok=True)
        return predict(process, work)

    monkeypatch.setattr(WorkerProcess, "run", beside)
    with pytest.raises(UserError, match=r"part-00000000\.parquet was written by a run of another job"):
        run(job(folder, out), QUIET)


def test_parts_whose_identity_was_lost_are_not_mixed(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(24), tmp_path / "out"
    kept = half_done(folder, out)
    for name in ("identity.json", "begun.json"):
        (out / "_job" / name).unlink()
    with pytest.raises(UserError, match=r"part-00000000\.parquet was made by another job"):
        run(job(folder, out, {"seed": 2}), QUIET)
    assert parts(out) == kept
    assert run(job(folder, out), QUIET).images == 10


# ---- trainings and studies ----------------------------------------------------------------------


def test_a_training_that_failed_before_its_first_step_is_in_nobodys_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 10), tmp_path / "out"
    few = tiny.colours(tmp_path / "few", 8, ("red", "blue"))
    stopped("step", Recorder, tiny.job(folder, out, {"epochs": 1}))
    assert (out / "_job" / "training" / "data.json").exists()
    capfd.readouterr()
    launch(tiny.job(few, out, {"epochs": 2}))
    said = capfd.readouterr().err
    assert "is discarded: input.url: the output has '" in said
    assert "train.epochs: the output has 1, this job has 2" in said
    about = json.loads((out / "model.json").read_text())
    assert about["classes"] == ["blue", "red"]
    with pytest.raises(UserError, match="holds another training:\n  input.url"):
        launch(tiny.job(folder, out, {"epochs": 2}), QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no truth", "one image", "as it is"])
def test_a_training_that_could_not_begin_leaves_its_output_free(fault: str, tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 10), tmp_path / "out"
    wrong = {
        "no truth": tiny.job(folder / "red", out, {"epochs": 1}),
        "one image": tiny.job(tiny.colours(tmp_path / "one", 1), out, {"epochs": 1}),
        "as it is": tiny.job(folder, out, {"strategy": "as_is"}),
    }[fault]
    with pytest.raises(UserError):
        launch(wrong, QUIET)
    launch(tiny.job(folder, out, {"epochs": 1}), QUIET)
    assert (out / "model.json").exists()


def test_a_lesson_is_another_training(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 10), tmp_path / "out"
    launch(tiny.job(folder, out, {"epochs": 1}), QUIET)
    with pytest.raises(UserError, match="lesson: the output has False, this job has True"):
        launch(tiny.job(folder, out, {"epochs": 1}, lesson=True), QUIET)


def a_study(photos: Path, out: Path, **section: Any) -> StudyJob:
    data = tiny.job(photos, out, {"epochs": 1}).model_dump(mode="json")
    study = {"vary": {"train.strategy": ["head", "all"]}, **section}
    return StudyJob.model_validate({**data, "kind": "study", "study": study})


def test_what_another_kind_of_job_left_unfinished_is_discarded_and_results_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 6), tmp_path / "out"
    training, predicting = tiny.job(folder, out, {"epochs": 1}), job(folder, out)
    stopped("step", Recorder, training)
    stopped("predict_inline", running, predicting)
    assert not list((out / "_job").glob("training/*.json"))
    stopped("step", Recorder, a_study(folder, out))
    assert not (out / "_job" / "begun.json").exists()
    assert list((out / "trials").glob("*/_job/training/identity.json"))
    capfd.readouterr()
    launch(training)
    assert "a study that was begun in" in capfd.readouterr().err
    assert not list(out.glob("trials/*/_job/training/*.json"))
    kept = parts(out)
    with pytest.raises(UserError, match="holds a training, and this job makes a study"):
        launch(a_study(folder, out), QUIET)
    with pytest.raises(UserError, match="was made by another job"):
        launch(predicting, QUIET)
    assert parts(out) == kept
    run(job(folder, tmp_path / "rows"), QUIET)
    for other in (tiny.job(folder, tmp_path / "rows"), a_study(folder, tmp_path / "rows")):
        with pytest.raises(UserError, match="holds predictions, and this job makes a"):
            launch(other, QUIET)


def test_a_study_without_a_result_gives_way_and_one_with_results_does_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 6), tmp_path / "out"
    few = tiny.colours(tmp_path / "few", 6, ("red", "blue"))
    stopped("step", Recorder, a_study(folder, out))
    capfd.readouterr()
    assert launch(a_study(few, out)).total == 2
    assert "is discarded: input.url: the output has" in capfd.readouterr().err
    more = {"vary": {"train.strategy": ["head", "all", "scratch"]}}
    assert launch(a_study(few, out, **more), QUIET).images == 1  # Further trials of the same study.
    alone = {"vary": {"train.strategy": ["last_blocks"]}}
    with pytest.raises(UserError, match="holds another study:\n  input.url: the output has"):
        launch(a_study(folder, out, **alone), QUIET)


def test_files_that_are_not_the_outputs_own_stay(photos: Photos, tmp_path: Path) -> None:
    project, folder = tmp_path / "project", photos(4)
    own = ["evaluation/notes.txt", "evaluation.json", "trials/one/notes.txt", "trials/list.csv"]
    for name in own:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("mine")
    stopped("run", WorkerProcess, job(folder, project))
    assert [name for name in own if (project / name).read_text() == "mine"] == own
    run(job(folder, project, input={"url": str(folder), "limit": 2}), QUIET)
    assert all((project / name).read_text() == "mine" for name in own if name != "evaluation.json")
    spec = tiny.job(
        tiny.colours(tmp_path / "colours", 12), tmp_path / "project-2", task={"model": "no.such:thing"}
    )
    (tmp_path / "project-2/trials/one").mkdir(parents=True)
    (tmp_path / "project-2/trials/one/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no\.such"):
        launch(spec, QUIET)
    assert (tmp_path / "project-2/trials/one/notes.txt").read_text() == "mine"
