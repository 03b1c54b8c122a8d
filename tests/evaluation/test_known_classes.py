"""Ground truth that a model can't know stops the job at once; and rows of an output are no images."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cnnbatch
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.evaluation.known_classes import KnownClasses
from cnnbatch.inference.bench.check import check
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob, fingerprint_fields
from cnnbatch.output.plan import cut
from cnnbatch.report.answers import objects as report_objects
from cnnbatch.storage import Storage
from cnnbatch.tasks.detect import Detect
from cnnbatch.terminal.screen import Screen
from cnnbatch.truth import LABEL_SCHEMA, Class, table
from cnnbatch.truth.classes import ModelClasses, match_classes, no_known_label
from tests import judged
from tests.jobs import parse_job
from tests.outputs import good, write_output
from tests.sourcing import source
from tests.tiny import colours
from tests.tiny_detections import drawn, voc

QUIET = RunOptions(quiet=True)
NAMES = ("green", "red")


def classifying(url: Path, out: Path, **given: Any) -> MapJob:
    """Return a job of the tiny network, which knows ``warm`` and ``cold``, one image a shard."""
    return MapJob.model_validate(
        {
            "task": {"name": "classify", "model": "tests.tiny:build", "weights": "random"},
            "input": {"url": str(url), "shard_size": 1, **given},
            "output": str(out),
            "compute": {"pool": "inline", "cpus_per_worker": 1},
        }
    )


def detecting(url: str, out: Path, names: Sequence[str] = NAMES, **given: Any) -> MapJob:
    """Return a job of a detector with random weights for classes of these names, one image a shard."""
    task = {"name": "detect", "model": "ssdlite320_mobilenet_v3_large", "weights": "random", "size": [64, 64]}
    return MapJob.model_validate(
        {
            "task": {**task, "classes": list(names), "score_threshold": 0.0, "max_objects": 2},
            "input": {"url": url, "shard_size": 1, **given},
            "output": str(out),
            "compute": {"pool": "inline", "cpus_per_worker": 1},
        }
    )


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("predictions/*"))


def coco(folder: Path, labels: Sequence[str], categories: Sequence[str] = (*NAMES, "blue", "grey")) -> str:
    """Write an image with one object for each label, and return its file."""
    images, annotations = [], []
    for number, label in enumerate(labels):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
        one = {"id": number, "image_id": number, "bbox": [1, 2, 10, 10]}
        annotations.append({**one, "category_id": categories.index(label)})
    named = [{"id": number, "name": name} for number, name in enumerate(categories)]
    content = {"images": images, "annotations": annotations, "categories": named}
    (folder / "instances.json").write_text(json.dumps(content))
    return str(folder / "instances.json")


def test_another_file_judges_what_a_coco_file_named(tmp_path: Path) -> None:
    """The other file may lie anywhere: its names are keys of the output's images."""
    for name in ("images", "elsewhere"):
        (tmp_path / name).mkdir()
    file = Path(coco(tmp_path / "images", ["red", "green"]))
    run(detecting(str(file), tmp_path / "out"), QUIET)
    other = json.loads(file.read_text())
    other["annotations"] = other["annotations"][:1]
    (tmp_path / "elsewhere" / "other.json").write_text(json.dumps(other))
    truth = f"truth={tmp_path / 'elsewhere' / 'other.json'}"
    found = evaluate_again(str(tmp_path / "out"), [truth], Screen(quiet=True))
    assert (found.images, found.metrics["AP"].count) == (2, 1)


def test_masks_made_for_other_sizes_stop_before_the_first_shard(tmp_path: Path) -> None:
    """The file states these sizes, too, so that only the pictures tell it."""
    file = Path(coco(tmp_path, ["red", "green"]))
    content = json.loads(file.read_text())
    for number, image in enumerate(content["images"]):
        image |= {"width": 20, "height": 15}
        content["annotations"][number]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    file.write_text(json.dumps(content))
    words = r"first 2 images 2 have ground truth .*\n  0.png: its ground truth is for 20 x 15 pixels"
    with pytest.raises(UserError, match=words):
        run(detecting(str(file), tmp_path / "out"), QUIET)
    assert not parts(tmp_path / "out")
    run(detecting(str(file), tmp_path / "unjudged", truth="none"), QUIET)
    with pytest.raises(UserError, match=words):
        evaluate_again(str(tmp_path / "unjudged"), [f"truth={file}"], Screen(quiet=True))


def test_a_category_without_objects_stops_nothing(tmp_path: Path) -> None:
    run(detecting(coco(tmp_path, ["red", "green", "red"]), tmp_path / "out"), QUIET)
    found = cnnbatch.open(tmp_path / "out").evaluation()
    assert found is not None
    assert (found.images, found.metrics["AP"].count, found.notes) == (3, 3, {})


def test_the_numbers_are_pycocotools_with_a_category_that_has_no_object(tmp_path: Path) -> None:
    data = judged.dataset(20, 3)
    data["categories"] = [{"id": 90, "name": "all"}, *data["categories"], {"id": 91, "name": "nothing"}]
    found = [one for one in judged.detections(data) if one["category_id"] < 4]
    folder = judged.write_detected(tmp_path / "out", data, found)
    known = {"names": [f"class {number}" for number in (1, 2, 3)], "ids": [], "aliases": {}}
    (folder / "_job" / "classes.json").write_text(json.dumps(known))
    evaluation = evaluate(str(folder), Storage())
    assert evaluation is not None
    values = [value.value for value in evaluation.metrics.values()]
    assert values == pytest.approx(judged.reference(data, found).stats.tolist(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "voc"])
def test_an_unknown_class_of_a_late_object_stops_before_the_first_shard(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "coco":
        url = coco(tmp_path, ["red"] * 5 + ["blue"])
    else:
        url = str(voc(tmp_path / "tree", 6))
        last = tmp_path / "tree" / "Annotations" / "005.xml"
        last.write_text(last.read_text().replace(">red<", ">blue<"))
        assert ">blue<" in last.read_text()
    spec = detecting(url, tmp_path / "out")
    monkeypatch.setattr(Detect, "class_names", lambda task: None)  # Known once the model is loaded.
    with pytest.raises(UserError, match="'blue'.*\n.*red.*\n.*'task.aliases={blue: null}'"):
        run(spec, QUIET)
    assert not parts(tmp_path / "out")
    with pytest.raises(UserError, match="'blue'"):
        check(spec)
    monkeypatch.undo()
    monkeypatch.setattr(Detect, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="'blue'"):
        run(spec, QUIET)
    with pytest.raises(UserError, match="'blue'"):
        check(spec)


def test_what_is_not_taken_does_not_stop(tmp_path: Path) -> None:
    run(detecting(coco(tmp_path, ["red", "blue"]), tmp_path / "out", limit=1), QUIET)
    assert len(parts(tmp_path / "out")) == 1


def test_an_alias_leaves_a_class_out(tmp_path: Path) -> None:
    spec = detecting(coco(tmp_path, ["red", "blue"]), tmp_path / "out")
    task = spec.task.model_copy(update={"aliases": {"blue": None}})
    run(spec.model_copy(update={"task": task}), QUIET)
    assert len(parts(tmp_path / "out")) == 2


def test_a_class_behind_the_first_images_stops_at_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbatch.evaluation.ground_truths.READ", 2)
    url = str(voc(tmp_path / "tree", 6))
    last = tmp_path / "tree" / "Annotations" / "005.xml"
    last.write_text(last.read_text().replace(">red<", ">blue<"))
    with pytest.raises(UserError, match="'blue'"):
        run(detecting(url, tmp_path / "out"), QUIET)
    assert len(parts(tmp_path / "out")) == 5


@pytest.mark.slow
def test_of_a_coco_file_every_object_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.evaluation.ground_truths.LISTED", 2)
    url = coco(tmp_path, ["red", "green", "red", "blue"])
    with pytest.raises(UserError, match="'blue'"):
        run(detecting(url, tmp_path / "out"), QUIET)
    assert not parts(tmp_path / "out")
    one = detecting(f"{tmp_path}/[012].png", tmp_path / "some", truth=url)  # The fourth is not taken.
    run(one, QUIET)
    assert len(parts(tmp_path / "some")) == 3


def test_labels_of_which_none_is_known_stop_before_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = colours(tmp_path / "photos", 2, classes=("blue", "green"))
    spec = classifying(folder, tmp_path / "out", format="folders")
    with pytest.raises(UserError, match="none of the labels of .*: blue, green\n.*warm, cold"):
        run(spec, QUIET)
    assert not parts(tmp_path / "out")
    with pytest.raises(UserError, match="none of the labels"):
        check(spec)
    run(classifying(folder, tmp_path / "plain"), QUIET)  # Without ground truth they are predicted.
    assert len(parts(tmp_path / "plain")) == 4


def test_ground_truth_in_the_input_can_be_left_out(tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos", 2, classes=("blue",))
    data = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
    pq.write_table(pa.table({"image": data, "label": ["blue", "blue"]}), tmp_path / "images.parquet")
    url = tmp_path / "images.parquet"
    with pytest.raises(UserError, match="or leave the ground truth out .input.truth=none."):
        run(classifying(url, tmp_path / "out"), QUIET)
    assert not parts(tmp_path / "out")
    run(classifying(url, tmp_path / "out", truth="none"), QUIET)
    assert len(parts(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "_job" / "truth").exists()
    found = source(str(url), truth="none")
    assert (found.truth_schema, found.truth(next(cut(found.refs(), lambda index: 5)))) == (None, None)
    with pytest.raises(UserError, match="none of the labels of .*: blue\n"):  # Judged by it after all.
        evaluate_again(str(tmp_path / "out"), ["label=label"], Screen(quiet=True))
    given = coco(tmp_path, ["blue"])
    run(detecting(given, tmp_path / "boxes", truth="none"), QUIET)
    assert cnnbatch.open(tmp_path / "boxes").evaluation() is None


def test_one_known_label_is_enough_wherever_it_is(tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos", 2, classes=("blue", "green"))
    (folder / "green").rename(folder / "warm")
    run(classifying(folder, tmp_path / "out", format="folders"), QUIET)
    found = cnnbatch.open(tmp_path / "out").evaluation()
    assert found is not None
    assert found.notes == {"images of a class that the model does not know, counted as mistakes": 2}
    assert found.images == 4


def test_answers_of_another_kind_are_not_compared(tmp_path: Path) -> None:
    """Boxes can't judge labels, nor labels boxes: then what the classes are called does not matter."""
    run(classifying(Path(coco(tmp_path, ["blue"])), tmp_path / "labels"), QUIET)
    folder = colours(tmp_path / "photos", 1, classes=("blue",))
    run(detecting(str(folder), tmp_path / "boxes", format="folders"), QUIET)
    assert cnnbatch.open(tmp_path / "labels").evaluation() is None
    assert cnnbatch.open(tmp_path / "boxes").evaluation() is None


def test_as_little_is_read_as_tells_that_a_label_is_known(tmp_path: Path) -> None:
    folder = colours(tmp_path / "photos", 30, classes=("blue",))
    (folder / "blue").rename(folder / "cold")
    spec = classifying(folder, tmp_path / "out", format="folders")
    found = source(str(folder), format="folders")
    read = []

    def shards() -> Any:
        for shard in cut(found.refs(), lambda index: 10):
            read.append(shard.index)
            yield shard

    known = KnownClasses(spec, found, shards)
    known.require({"names": ["warm", "cold"]})
    known.require({"names": ["other"]})  # Once is enough.
    assert read == [0]


def write_labels(folder: Path, labels: Sequence[str | None]) -> None:
    """Write an output of two known classes with these labels as its ground truth."""
    rows = [good(f"{n}.jpg", f"/{n}.jpg", [("cat", 0.75), ("dog", 0.25)]) for n in range(len(labels))]
    write_output(folder, [rows])
    (folder / "_job" / "classes.json").write_text(json.dumps({"names": ["cat", "dog"], "ids": []}))
    (folder / "_job" / "truth").mkdir()
    truth = table([{"label": one} for one in labels], LABEL_SCHEMA)
    pq.write_table(truth, folder / "_job" / "truth" / "part-00000000.parquet")


def test_an_output_is_not_judged_by_labels_of_which_none_is_known(tmp_path: Path) -> None:
    write_labels(tmp_path, ["Katze", "Hund", None])
    with pytest.raises(UserError, match="none of the labels of the ground truth is a class.*: Katze, Hund\n"):
        evaluate(str(tmp_path), Storage())
    assert not (tmp_path / "evaluation.json").exists()
    evaluation = evaluate(str(tmp_path), Storage(), Terms(aliases={"Katze": "cat", "Hund": None}))
    assert evaluation is not None
    assert (evaluation.images, evaluation.metrics["top1"].value) == (1, 1.0)
    assert evaluation.notes == {"images without ground truth": 2}


def test_a_message_names_a_few_of_many_classes() -> None:
    model = ModelClasses([f"name {number}" for number in range(1000)])
    labels = [f"n{number:08}" for number in range(1000)]
    texts = [str(no_known_label(model, labels))]
    with pytest.raises(UserError) as raised:
        match_classes(model, [Class(label, label) for label in labels], {})
    for text in (*texts, str(raised.value)):
        assert re.search(r"n00000019'? and 980 more\n", text)
        assert len(text) < 2500


def test_kept_columns_are_no_predictions(tmp_path: Path) -> None:
    """Rows of some other task that kept a column ``label`` of its list."""
    write_labels(tmp_path, ["cat"])
    job = tmp_path / "_job" / "job.yaml"
    job.write_text(job.read_text().replace("limit: null", "limit: null, keep: [label]"))
    assert evaluate(str(tmp_path), Storage()) is None


def test_the_rows_of_an_output_are_no_images(tmp_path: Path) -> None:
    write_labels(tmp_path / "other", ["cat"])
    with pytest.raises(UserError, match="is the output of a job, with rows and no images\n.*other#objects"):
        source(str(tmp_path / "other"))


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output with two objects in each of three pictures, of which each has another score."""
    folder = tmp_path_factory.mktemp("boxes")
    for number in range(3):
        drawn(number)[0].save(folder / f"{number}.png")
    run(detecting(str(folder), folder / "out"), QUIET)
    part = folder / "out" / "predictions" / "part-00000001.parquet"
    table = pq.read_table(part)
    objects: list[Any] = table["objects"].to_pylist()
    for one, score in zip(objects[0], (0.7, 0.5), strict=True):  # 0.7 is less in 32 bits than in 64.
        one["score"] = score
    column = pa.array(objects, table.schema.field("objects").type)
    place = table.schema.get_field_index("objects")
    pq.write_table(table.set_column(place, table.schema.field("objects"), column), part)
    return folder / "out"


def test_predicted_labels_are_kept_and_no_ground_truth(boxes: Path, tmp_path: Path) -> None:
    found = source(f"{boxes}#objects")
    assert found.truth_schema is None
    run(classifying(Path(f"{boxes}#objects"), tmp_path / "out"), QUIET)
    rows = cnnbatch.open(tmp_path / "out").arrow().to_pylist()
    assert [row["key"] for row in rows] == ["1.png#0", "1.png#1"]
    assert {row["object_label"] for row in rows} <= set(NAMES)
    assert {row["label"] for row in rows} <= {"warm", "cold"}
    assert not (tmp_path / "out" / "_job" / "truth").exists()
    assert cnnbatch.open(tmp_path / "out").evaluation() is None


@pytest.mark.parametrize(
    ("least", "taken"), [(0.5, 2), (0.500001, 1), (0.7, 1), (0.71, 0), (0.0, 6), (1.0, 0)]
)
def test_only_objects_of_the_least_score_are_taken(least: float, taken: int, boxes: Path) -> None:
    found = source(f"{boxes}#objects", min_score=least)
    if taken:
        assert len(list(found.refs())) == taken
    else:
        with pytest.raises(UserError, match="found none in the whole input\n.*lower input.min_score"):
            list(found.refs())


def test_found_objects_are_chosen_by_what_they_were_called(boxes: Path) -> None:
    every = list(source(f"{boxes}#objects", min_score=0.0).refs())
    names = {ref.columns["object_label"] for ref in every}
    for name in names:
        chosen = source(f"{boxes}#objects", min_score=0.0, classes=(name,))
        assert chosen.truth_schema is None
        assert list(chosen.refs()) == [ref for ref in every if ref.columns["object_label"] == name]


def test_the_least_score_means_nothing_elsewhere(boxes: Path, tmp_path: Path) -> None:
    url = coco(tmp_path, ["red"])
    for other in (url, f"{url}#objects", str(tmp_path)):
        with pytest.raises(UserError, match=r"input\.min_score: .* has no use for it\n.*OUT#objects"):
            source(other, min_score=0.3)
    with pytest.raises(UserError, match="can be kept; got object_label"):
        source(f"{url}#objects", keep=("object_label",))
    with pytest.raises(UserError, match="object_label can be kept; got licence"):
        source(f"{boxes}#objects", keep=("licence",))


def test_only_another_least_score_is_in_the_fingerprint() -> None:
    text = "task: {name: classify, model: resnet18}\ninput: photos\noutput: out\n"
    plain = fingerprint_fields(parse_job(text, "job"))
    assert "min_score" not in plain["input"]
    assert fingerprint_fields(parse_job(text, "job", ["input.min_score=0.5"])) == plain
    assert fingerprint_fields(parse_job(text, "job", ["input.min_score=0.3"])) != plain


@pytest.mark.parametrize("score", [0.5, 0.4999])
def test_the_report_shows_what_is_taken_by_default(score: float) -> None:
    taken = score >= Input.model_fields["min_score"].default
    assert report_objects.is_sure({"score": score}) == taken == (score == 0.5)


def test_an_output_that_an_earlier_version_began_is_refused(boxes: Path) -> None:
    found = source(f"{boxes}#objects")
    (shard,) = cut(found.refs(), lambda index: 100)
    old = [replace(ref, columns={**ref.columns, "label": "red"}) for ref in shard.refs]
    with pytest.raises(UserError, match="begun by an earlier version.*\n.*give a new output"):
        found.truth(replace(shard, refs=tuple(old)))


def test_nothing_is_added_to_an_output_of_an_earlier_version(boxes: Path, tmp_path: Path) -> None:
    """Its rows lack the column, and one of its images is not predicted yet."""
    spec = classifying(Path(f"{boxes}#objects"), tmp_path / "out", limit=1)
    run(spec, QUIET)
    (part,) = parts(tmp_path / "out")
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["object_label"]), part)
    run(spec, QUIET)  # Nothing to do.
    with pytest.raises(UserError, match="begun by an earlier version.*\n.*give a new output"):
        run(spec.model_copy(update={"input": spec.input.model_copy(update={"limit": 2})}), QUIET)


def test_where_pictures_lie_is_asked_of_nodes_and_not_what_the_input_is_called(boxes: Path) -> None:
    from cnnbatch.cluster.nodes import Node
    from cnnbatch.inference.autotune.store import SettingsStore
    from cnnbatch.inference.driver.scheduler import Scheduler
    from cnnbatch.inference.messages import LoadOrder
    from cnnbatch.output.folder import Output

    asked: list[list[str]] = []

    class Pool:
        def nodes(self) -> list[Node]:
            return [Node("a", "one", 1, 0), Node("b", "two", 1, 0)]

        def call_on(self, nodes: list[str], function: Any, paths: list[str]) -> dict[str, list[str]]:
            asked.extend(paths for _ in nodes)
            return {node: [] for node in nodes}

    pool: Any = Pool()
    spec = classifying(Path(f"{boxes}#objects"), boxes.parent / "kinds")
    found = source(f"{boxes}#objects")
    (shard,) = cut(found.refs(), lambda index: 100)
    output = Output(str(boxes.parent / "kinds"), Storage())
    order = LoadOrder(spec, found, output, False, None)
    made = Scheduler(pool, order, SettingsStore(spec, output), print)
    made._require_shared_paths(shard)
    assert asked == [[str(boxes.parent / "kinds" / "_job"), str(boxes.parent)]] * 2
