"""What every task keeps to, found by itself; and tasks and models of packages outside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
import torch

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.tasks import Task
from cnnbatch.tasks.registry import task_class, task_names
from cnnbatch.types import Image, ImageRef, Model, Runtime

TINY: dict[str, dict[str, Any]] = {
    "classify": {
        "model": "mobilenet_v3_small",
        "weights": "random",
        "preprocessing": {"resize": 36, "crop": 32},
        "probabilities": True,
        "embedding": True,
    },
    "detect": {
        "model": "fasterrcnn_mobilenet_v3_large_320_fpn",
        "weights": "random",
        "score_threshold": 0.0,
        "size": [64, 96],
    },
    "embed": {
        "model": "mobilenet_v3_small",
        "weights": "random",
        "preprocessing": {"resize": 36, "crop": 32},
    },
    "faces": {
        "detector": {"model": "tests.tiny_faces:squares"},
        "embedder": {"model": "tests.tiny_faces:mean_colour"},
        "min_size": 1,  # In noise some pixels are red enough to be a face.
        "max_faces": 3,
    },
    "instances": {
        "model": "tests.tiny_instances:detector",
        "weights": "random",
        "score_threshold": 0.0,
        "max_objects": 3,
    },
    "keypoints": {
        "model": "tests.toy:poses",
        "weights": "random",
        "score_threshold": 0.0,
        "max_objects": 3,
    },
    "panoptic": {
        "semantic": {"model": "tests.tiny_segmenter:convolutions"},
        "instances": {"model": "tests.tiny_instances:seeing", "weights": "random"},
        "score": 0.0,
        "stuff_area": 10,
    },
    "segment": {
        "model": "tests.tiny_segmenter:convolutions",
        "flips": True,
        "uncertain": 2,
    },
    "three_views": {
        "detect": {"model": "tests.tiny_instances:seeing", "weights": "random", "score_threshold": 0.0},
        "segment": {"model": "tests.tiny_segmenter:convolutions"},
        "instances": {"model": "tests.tiny_instances:detector", "weights": "random", "score_threshold": 0.0},
        "names": {"road": "bar"},
    },
}
"""The fields that make a task small: random weights, small inputs. A new task adds its own here."""

TASK = '''
"""The mean gray of a picture."""

import pyarrow as pa

from cnnbatch.tasks import Task


class Brightness(Task):
    offset: float = 0.0

    def columns(self):
        return pa.schema([("brightness", pa.float32())])

    def load(self, runtime):
        return Mean(self)


class Mean:
    def __init__(self, task):
        self.task = task
        self.identity = {"weights": "none", "preprocessing": "none", "library": "outside 1.0"}

    def decode_size(self, size):
        return None

    def prepare(self, image):
        from cnnbatch.types import Prepared

        return [Prepared(image.pixels[:, :4, :4], (4, 4))]

    def forward(self, batch, sizes):
        return {"mean": batch.float().mean((1, 2, 3)) + self.task.offset}

    def rows(self, images, prepared, outputs):
        values = [float(output[0]["mean"]) for output in outputs]
        return pa.RecordBatch.from_arrays([pa.array(values, pa.float32())], schema=self.task.columns())
'''

MODEL = '''
"""A classifier of light and dark."""

import torch

from cnnbatch.models import Network, Preprocessing


class Light(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 2)
        self.head.load_state_dict({"weight": torch.tensor([[9.0], [-9.0]]), "bias": torch.zeros(2)})

    def forward(self, x):
        return self.head(x.mean((1, 2, 3))[:, None])


def build():
    return Network(Light(), Preprocessing(8, (8, 8)), ("light", "dark"), "CC0-1.0", weights="light-1")
'''


@pytest.fixture(params=task_names())
def task(request: pytest.FixtureRequest) -> Task:
    """Return every task of the package, small."""
    name = request.param
    assert name in TINY, f"say in {__file__} how {name} is made small"
    return task_class(name).model_validate({"name": name, **TINY[name]})


def images(*numbers: int) -> list[Image]:
    """Return pictures of several sizes, each following from its number."""
    return [_image(number) for number in numbers]


def _image(number: int) -> Image:
    size = (40 + number % 3, 48 + number % 5)
    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(number))
    ref = ImageRef(f"{number}.jpg", f"/photos/{number}.jpg")
    return Image(ref, pixels.to(torch.uint8).permute(2, 0, 1), size, None)


def predict(model: Model, pictures: list[Image]) -> pa.RecordBatch:
    """Take pictures through a model's steps, those of one network and one shape in one batch."""
    prepared = [list(model.prepare(picture)) for picture in pictures]
    batches: dict[Any, list[tuple[int, int]]] = {}
    for i, inner in enumerate(prepared):
        for j, one in enumerate(inner):
            batches.setdefault((one.network, one.pixels.shape), []).append((i, j))
    found: dict[tuple[int, int], Any] = {}
    for (network, _), batch in batches.items():
        pixels = torch.stack([prepared[i][j].pixels for i, j in batch])
        sizes = torch.tensor([prepared[i][j].sizes for i, j in batch])
        whose: Any = model.networks[network] if network else model  # type: ignore[attr-defined]
        with torch.inference_mode():
            outputs = whose.forward(pixels, sizes)
        found.update(zip(batch, _split(outputs), strict=True))
    return model.rows(
        pictures, prepared, [[found[i, j] for j in range(len(inner))] for i, inner in enumerate(prepared)]
    )


def _split(outputs: Any) -> Iterator[Any]:
    if isinstance(outputs, dict):
        return (dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True))
    return zip(*outputs, strict=True)


def test_there_are_tasks() -> None:
    assert "classify" in task_names()
    assert task_names() == sorted(task_names())
    assert set(TINY) <= set(task_names())


def test_a_driver_can_use_it_without_torch_or_ray(task: Task) -> None:
    code = (
        "import sys\n"
        "from cnnbatch.tasks.registry import task_class\n"
        f"found = task_class({task.name!r})\n"
        f"found.model_validate_json({task.model_dump_json()!r}).columns()\n"
        "found.model_json_schema()\n"
        "print(*{'torch', 'torchvision', 'timm', 'ray'} & set(sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cnnbatch.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (ended.stdout.strip(), ended.stderr, ended.returncode) == ("", "", 0)


@pytest.mark.slow
def test_one_row_an_image_with_exactly_the_schemas_columns(task: Task) -> None:
    model = task.load(Runtime("cpu"))
    for count in 1, 3:
        rows = predict(model, images(*range(count)))
        assert rows.schema.equals(getattr(model, "columns", task.columns()), check_metadata=True)
        assert rows.schema.names == task.columns().names
        assert rows.num_rows == count
        rows.validate(full=True)


@pytest.mark.slow
def test_neighbours_in_a_batch_do_not_change_a_row(task: Task) -> None:
    model = task.load(Runtime("cpu"))
    first, second = predict(model, images(1, 2, 3)), predict(model, images(4, 1, 6))
    assert first.slice(0, 1).to_pylist() == second.slice(1, 1).to_pylist()


@pytest.mark.slow
def test_loading_again_gives_the_same_rows_and_identity(task: Task) -> None:
    first, second = task.load(Runtime("cpu")), task.load(Runtime("cpu"))
    assert dict(first.identity) == dict(second.identity)
    assert {"weights", "preprocessing", "library"} <= set(first.identity)
    assert predict(first, images(1, 2)).equals(predict(second, images(1, 2)))


@pytest.mark.slow
def test_decoding_smaller_is_asked_only_of_larger_pictures(task: Task) -> None:
    model = task.load(Runtime("cpu"))
    for size in (1, 1), (30, 4000), (4000, 30), (600, 800), (6000, 4000):
        least = model.decode_size(size)
        assert least is None or (0 < least[0] <= size[0] and 0 < least[1] <= size[1])


def test_the_json_schema_accepts_what_the_task_dumps(task: Task) -> None:
    schema = type(task).model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(task.model_dump(mode="json"), schema)
    assert type(task).model_validate_json(task.model_dump_json()) == task


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of a package that lives outside the checkout, with a task and a model."""
    package = tmp_path / "elsewhere" / "outsider"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(TASK)
    (package / "models.py").write_text(MODEL)
    monkeypatch.syspath_prepend(package.parent)
    yield "outsider"
    for name in [name for name in sys.modules if name.partition(".")[0] == "outsider"]:
        del sys.modules[name]


def test_a_task_of_another_package_is_found_by_its_address(outside: str) -> None:
    name = f"{outside}.tasks:Brightness"
    found = task_class(name).model_validate({"name": name, "offset": 1.0})
    rows = predict(found.load(Runtime("cpu")), images(1, 2))
    expected = [float(one.pixels[:, :4, :4].float().mean()) + 1 for one in images(1, 2)]
    assert rows["brightness"].to_pylist() == pytest.approx(expected)


def test_a_model_of_another_package_is_found_by_its_address(outside: str) -> None:
    task = task_class("classify").model_validate({"model": f"{outside}.models:build"})
    model = task.load(Runtime("cpu"))
    black, white = images(0), images(0)
    black[0].pixels.zero_()
    white[0].pixels.fill_(255)
    assert predict(model, black + white)["label"].to_pylist() == ["dark", "light"]
    assert model.identity["weights"] == "light-1"


@pytest.mark.parametrize("kind", ["task", "model"])
def test_a_whole_job_runs_with_another_package(outside: str, kind: str, tmp_path: Path, photos: Any) -> None:
    name = f"{outside}.tasks:Brightness" if kind == "task" else "classify"
    fields = {} if kind == "task" else {"model": f"{outside}.models:build"}
    path = tmp_path / "job.yaml"
    path.write_text(f"task: {{name: '{name}'}}\ninput: {photos(3)}\noutput: {tmp_path / 'out'}\n")
    cnnbatch.run(str(path), task=fields, compute={"pool": "inline"})
    rows = cnnbatch.open(tmp_path / "out").arrow()
    assert rows.num_rows == 3
    assert rows["error"].null_count == 3
    assert rows["brightness" if kind == "task" else "label"].null_count == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clasify", "did you mean classify?"),
        ("nothing", "known: classify"),
        ("no.such.module:Task", "cannot be imported"),
        ("cnnbatch.tasks.classify:Clasify", "did you mean Classify?"),
        ("cnnbatch.tasks.classify:Side", "expected a subclass of cnnbatch.tasks.Task"),
        (":Task", "mypackage.module"),
    ],
)
def test_unknown_tasks_are_told_with_the_nearest(name: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        task_class(name)
    assert expected in str(caught.value)
