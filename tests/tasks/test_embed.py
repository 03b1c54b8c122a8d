"""Embeddings of pictures: learned from some classes, judged by all pairs of others, used by their folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.config.train import EmbeddingLoss, Train
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import MapJob, TrainJob
from cnnbatch.launch import launch
from cnnbatch.models.choice import Choice
from cnnbatch.models.embedding_head import EmbeddingHead
from cnnbatch.models.embedding_network import EmbeddingForm, build_embedding
from cnnbatch.output.embeddings import EmbeddingSpace, space_of
from cnnbatch.tasks.recipes.embedding import EmbeddingRecipe
from cnnbatch.tasks.recipes.face_losses import criterion
from cnnbatch.tasks.recipes.inside import Strip
from cnnbatch.tasks.recipes.recipe import Example, TrainingData
from cnnbatch.tasks.registry import task_class
from cnnbatch.types import Precision, Runtime
from tests import tiny
from tests.training.trained import launch_twice, model_of, require_same, weights_of

QUIET = RunOptions(quiet=True)
LOSSES = ("contrastive", "siamese", "triplet", "softmax", "centre", "a_softmax", "cosface", "arcface")


def people(folder: Path, count: int, each: int) -> Path:
    """Fill a folder a person, told apart by two colours beside each other, in noise and changing light."""
    for person in range(count):
        rng = np.random.default_rng(person)
        colours = rng.uniform(40, 215, (2, 3))
        (folder / f"p{person:02}").mkdir(parents=True)
        for number in range(each):
            pixels = np.repeat(np.repeat(colours[None], 20, 0), 10, 1) * rng.uniform(0.7, 1.1)
            pixels = np.clip(pixels + rng.normal(0, 30, (20, 20, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"p{person:02}" / f"{number}.png")
    return folder


def job(photos: Path, out: Path, train: dict[str, Any] | None = None, **fields: Any) -> TrainJob:
    learning = {
        **{
            "strategy": "all",
            "epochs": 2,
            "batch": 16,
            "learning_rate": 0.01,
            "validation": 0.3,
            "test": 0.3,
        },
        **(train or {}),
    }
    task = {"name": "embed", **fields.pop("task", {})}
    return tiny.job(photos, out, learning, task=task, **fields)


def vectors_of(out: Path) -> tuple[dict[str, Any], EmbeddingSpace]:
    """Return the embedding of each key, and what the column says of them."""
    result = cnnbatch.open(str(out))
    rows = result.arrow(["key", "embedding"]).to_pylist()
    space = space_of(result.schema.field("embedding"))
    assert space is not None
    return {row["key"]: row["embedding"] for row in rows}, space


def test_people_who_did_not_train_are_told_apart(tmp_path: Path) -> None:
    photos, out = people(tmp_path / "people", 24, 6), tmp_path / "out"
    launch(job(photos, out, {"epochs": 8}), QUIET)
    about = model_of(out)
    vectors, space = vectors_of(out)
    tested = {key.split("/")[0] for key in vectors}
    assert len(tested) >= 3
    assert not tested & set(about["classes"])
    assert "all images of which are in one part" in about["data"]["how"]
    found = json.loads((out / "evaluation.json").read_text())["metrics"]
    count = len(vectors)
    assert found["pairs"]["value"] == count * (count - 1) / 2
    assert found["EER"]["value"] < 0.2
    assert about["validation"]["verification_accuracy"] == pytest.approx(1 - about["validation"]["EER"])
    lengths = np.linalg.norm(np.array(list(vectors.values())), axis=1)
    assert lengths == pytest.approx(1, abs=1e-5)
    assert (space.normalisation, space.metric) == ("l2", "euclidean")


@pytest.mark.slow
def test_the_folder_embeds_other_pictures_as_the_training_did(tmp_path: Path) -> None:
    photos, out = people(tmp_path / "people", 12, 4), tmp_path / "out"
    launch(job(photos, out, {"test": 0.4}, task={"dimensions": 5, "root": True}), QUIET)
    expected, _ = vectors_of(out)
    used = MapJob.model_validate(
        {
            "task": {"name": "embed", "model": "tests.tiny:build", "weights": str(out)},
            "input": {"url": str(photos), "label": "([^/]+)/"},
            "output": str(tmp_path / "vectors"),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )
    launch(used, QUIET)
    found, space = vectors_of(tmp_path / "vectors")
    assert space.dimensions == 5
    for key, vector in expected.items():
        assert found[key] == pytest.approx(vector, abs=1e-5)
    assert "most similar pictures of two classes" in (tmp_path / "vectors" / "report.html").read_text()


@pytest.mark.slow
def test_what_was_interrupted_goes_on_to_the_same_network(tmp_path: Path) -> None:
    photos = people(tmp_path / "people", 12, 6)
    how = {"epochs": 3, "checkpoint_s": 1e-9, "embedding": {"kind": "centre", "pictures": 3}}
    launch(job(photos, tmp_path / "whole", how), QUIET)
    launch_twice(lambda: job(photos, tmp_path / "broken", how), 5)
    require_same(tmp_path / "whole", tmp_path / "broken")


def inside_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "_job" / "training" / "inside.json").read_text())
    return found


def test_a_lesson_shows_vectors_by_epoch(tmp_path: Path) -> None:
    photos, out = people(tmp_path / "people", 12, 4), tmp_path / "out"
    launch(job(photos, out, {"epochs": 3}, lesson=True), QUIET)
    shown, about = inside_of(out)["vectors"], model_of(out)
    assert [one["epochs"] for one in shown["states"]] == [0, 1, 2, 3]
    assert not {*shown["classes"]} & set(about["classes"])
    counts = Counter(shown["classes"])
    assert 2 <= len(counts) <= 10
    assert {*counts.values()} == {4}
    courses = [one["verification_accuracy"] for one in about["epochs"]]
    assert [one["measured"] for one in shown["states"][1:]] == pytest.approx(courses)
    page = (out / "report.html").read_text()
    assert page.count("<h3>Embeddings in two dimensions, by epoch</h3>") == 1
    assert all(f"After {epochs}" in page for epochs in ("1 epoch<", "2 epochs<", "3 epochs<"))
    assert page.count('class="point"') == 4 * len(counts)
    before = page[page.index('<ul class="states">') :]
    (out / "report.html").unlink()
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    assert (out / "report.html").read_text().endswith(before)


@pytest.mark.slow
def test_a_lesson_that_was_interrupted_shows_what_lies_before_it(tmp_path: Path) -> None:
    photos = people(tmp_path / "people", 12, 4)
    how = {"epochs": 3, "batch": 8, "checkpoint_s": 1e-9}
    launch(job(photos, tmp_path / "whole", how, lesson=True), QUIET)
    launch_twice(lambda: job(photos, tmp_path / "broken", how, lesson=True), 4)
    whole, broken = (inside_of(tmp_path / name)["vectors"] for name in ("whole", "broken"))
    assert [one["epochs"] for one in broken["states"]] == [0, 1, 2, 3]
    for one, other in zip(whole["states"], broken["states"], strict=True):
        assert np.array(one["points"]) == pytest.approx(np.array(other["points"]), abs=1e-4)


def test_a_lesson_shows_triplets_of_people_who_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, seen = people(tmp_path / "people", 12, 4), list[str]()
    whole = EmbeddingRecipe.inside_step

    def inside_step(recipe: EmbeddingRecipe, examples: Sequence[Example]) -> list[Strip]:
        seen.extend(one.target[1] for one in examples)
        return whole(recipe, examples)

    monkeypatch.setattr(EmbeddingRecipe, "inside_step", inside_step)
    for kind, shown in (("triplet", ["Mined triplets"]), ("arcface", [])):
        out = tmp_path / kind
        launch(job(photos, out, {"epochs": 1, "embedding": {"kind": kind}}, lesson=True), QUIET)
        strips = inside_of(out)["strips"]
        assert [one["title"] for one in strips] == ["Hardest pairs of the validation", *shown]
        assert all(one["title"] in (out / "report.html").read_text() for one in strips)
    assert len(seen) == 2 * 16
    assert {*seen} <= {*model_of(out)["classes"]}


def test_where_nothing_is_learned_by_steps_a_lesson_shows_pairs_alone(tmp_path: Path) -> None:
    photos, out = people(tmp_path / "people", 10, 3), tmp_path / "out"
    launch(job(photos, out, {"strategy": "as_is", "epochs": "auto"}, lesson=True), QUIET)
    shown = inside_of(out)
    assert (shown["vectors"], shown["layers"]) == (None, [])
    assert [one["title"] for one in shown["strips"]] == ["Hardest pairs of the validation"]
    page = (out / "report.html").read_text()
    assert "Hardest pairs of the validation" in page
    assert "Embeddings in two dimensions" not in page


def test_a_report_shows_the_hardest_pairs_of_the_test(tmp_path: Path) -> None:
    photos, out = people(tmp_path / "people", 12, 4), tmp_path / "out"
    launch(job(photos, out), QUIET)
    vectors, _ = vectors_of(out)
    scored = [
        (float(np.linalg.norm(np.subtract(vectors[a], vectors[b]))), a, b)
        for a, b in combinations(sorted(vectors), 2)
    ]
    strangers = sorted(one for one in scored if one[1].split("/")[0] != one[2].split("/")[0])
    same = sorted(one for one in scored if one[1].split("/")[0] == one[2].split("/")[0])[::-1]
    rows = pq.read_table(out / "evaluation" / "hardest_pairs.parquet").to_pylist()
    for kind, expected in ((False, strangers), (True, same)):
        found = [-row["score"] for row in rows if row["same"] == kind]
        assert found == pytest.approx([one[0] for one in expected[:50]], abs=1e-5)
    page = (out / "report.html").read_text()
    section = page[page.index('id="pairs"') : page.index("</section>", page.index('id="pairs"'))]
    assert section.index("most similar pictures of two classes") < section.index("least similar pictures")
    assert section.count("<figure>") == 16
    assert f"distance {strangers[0][0]:.3f}" in section
    assert f"distance {same[0][0]:.3f}" in section
    assert same[0][1] in section


@pytest.mark.slow
def test_a_lesson_shows_the_hardest_pairs_and_triplets(tmp_path: Path) -> None:
    photos, out = people(tmp_path / "people", 10, 4), tmp_path / "out"
    launch(job(photos, out, {"epochs": 1}, lesson=True), QUIET)
    pairs, triplets = inside_of(out)["strips"]
    assert [(row[0]["name"], row[2]["name"]) for row in pairs["rows"]] == [("one class", "two classes")] * 4
    far, near = ([float(row[place]["name"].split()[1]) for row in pairs["rows"]] for place in (1, 3))
    assert far == sorted(far, reverse=True)
    assert near == sorted(near)
    assert [one["name"].split(",")[0] for one in triplets["rows"][0]] == ["anchor", "positive", "negative"]
    violations = []
    for row in triplets["rows"]:
        positive, negative = (float(one["name"].split()[-1]) for one in row[1:])
        violations.append(positive**2 - negative**2)
    assert violations == pytest.approx(sorted(violations, reverse=True), abs=0.01)  # Of rounded distances.
    assert pairs["title"] in (out / "report.html").read_text()


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_brings_a_person_together(kind: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = EmbeddingHead(6, 6, root=False)
        loss = criterion(EmbeddingLoss(kind=kind, scale=8.0 if kind.endswith("face") else None), 6, 4)
        persons = torch.arange(4).repeat_interleave(5)
        features = torch.randn(4, 6)[persons] + 0.8 * torch.randn(20, 6)
    optimizer = torch.optim.Adam([*head.parameters(), *loss.parameters()], 0.03)

    def spread() -> float:
        """How far those of one person are from each other, as a part of how far all are."""
        with torch.no_grad():
            found = torch.nn.functional.normalize(head(features), dim=1)
        squares = torch.cdist(found, found).square()
        same = persons[:, None] == persons[None]
        return float(squares[same].mean() / squares[~same].mean())

    before = spread()
    for _ in range(60):
        optimizer.zero_grad()
        loss(torch.nn.functional.normalize(head(features), dim=1), persons).backward()
        optimizer.step()
    assert spread() < 0.7 * before


def test_as_it_is_a_head_takes_the_mean_of_what_trains(tmp_path: Path) -> None:
    photos, out = people(tmp_path / "people", 8, 3), tmp_path / "out"
    launch(job(photos, out, {"strategy": "as_is", "epochs": "auto"}), QUIET)
    weights, trains = weights_of(out), set(model_of(out)["classes"])
    network = build_embedding(Choice("tests.tiny:build"), EmbeddingForm(), trained=False)
    body, head = network.module, EmbeddingHead(16, 16, root=False)
    directions = []
    for path in sorted(photos.glob("*/*.png")):
        if path.parent.name in trains:
            image = Image.open(path).resize((16, 16), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
            how = network.preprocessing
            mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (how.mean, how.std))
            with torch.no_grad():
                directions.append(head.directions(body.features((pixels - mean) / std)))  # type: ignore[operator]
    assert weights["head.centre"].tolist() == pytest.approx(torch.cat(directions).mean(0).tolist(), abs=0.01)
    assert torch.equal(weights["head.linear.weight"], torch.eye(16))


@pytest.mark.slow
def test_an_embedding_in_bfloat16_is_nearly_that_of_float32() -> None:
    task = task_class("embed").model_validate(
        {"name": "embed", "model": "mobilenet_v3_small", "weights": "random", "root": True}
    )
    pixels = torch.randint(
        0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    sizes = torch.tensor([[224, 224]] * 2)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    found = [
        task.load(Runtime("cpu", precision=precision)).forward(pixels, sizes)["embedding"]
        for precision in precisions
    ]
    assert float((found[0] * found[1]).sum(1).min()) > 0.98


@pytest.mark.parametrize(("allowed", "ends"), [(0.5, True), (0.01, False)])
def test_pictures_that_can_not_be_read_are_counted_where_nothing_is_learned(
    tmp_path: Path, allowed: float, ends: bool
) -> None:
    photos, out = people(tmp_path / "people", 8, 3), tmp_path / "out"
    for person in photos.iterdir():
        (person / "0.png").write_bytes(b"no picture")
    as_is = job(photos, out, {"strategy": "as_is", "epochs": "auto", "test": 0.0}, max_failed=allowed)
    if not ends:
        with pytest.raises(UserError, match="training images can't be learned from"):
            launch(as_is, QUIET)
        return
    launch(as_is, QUIET)
    about = model_of(out)
    assert sum(about["failed"].values()) == len(about["classes"])
    assert len(about["examples"]) > 0


def test_a_head_of_fewer_numbers_is_a_part_of_a_rotation() -> None:
    rows = EmbeddingHead(16, 6, root=False).linear.weight
    assert (rows @ rows.T).flatten().tolist() == pytest.approx(torch.eye(6).flatten().tolist(), abs=1e-5)


def without_hinge(photos: Path, out: Path, normalisation: str) -> dict[str, list[float]]:
    """Train by the triplet loss without its maximum; return what was measured by epoch."""
    loss = {"kind": "triplet", "mining": "all", "hinge": False, "margin": 0.3}
    task = {"normalisation": normalisation}
    how = {"epochs": 6, "strategy": "head", "learning_rate": 0.1, "embedding": loss}
    launch(job(photos, out, how, task=task), QUIET)
    rows = pq.read_table(out / "metrics.parquet").to_pandas().groupby("epoch").last()
    return {name: rows[name].tolist() for name in rows.columns}


def test_without_a_hinge_the_loss_falls_as_vectors_grow_unless_they_are_normalised(tmp_path: Path) -> None:
    photos = people(tmp_path / "people", 12, 4)
    free, bound = (without_hinge(photos, tmp_path / how, how) for how in ("none", "l2"))
    assert free["vector_length"] == sorted(free["vector_length"])
    assert free["vector_length"][-1] > 1.5 * free["vector_length"][0]
    assert free["loss"][-1] < free["loss"][0]
    assert "vector_length" not in bound
    assert min(bound["loss"]) >= 0.3 - 4
    assert (model_of(tmp_path / "none")["least_loss"], model_of(tmp_path / "l2")["least_loss"]) == (
        None,
        -3.7,
    )
    pages = [(tmp_path / how / "report.html").read_text() for how in ("none", "l2")]
    assert all("Lower bound of the loss" in page for page in pages)
    assert ["it falls as long as the vectors grow" in page for page in pages] == [True, False]
    assert [">vector_length</h3>" in page for page in pages] == [True, False]


def test_vector_lengths_are_those_before_any_division() -> None:
    network = build_embedding(Choice("tests.tiny:build"), EmbeddingForm(normalisation="none"), trained=False)
    recipe = EmbeddingRecipe(
        network, "tests.tiny:build", Train(), TrainingData(("a", "b"), {"a": 2, "b": 2}, 4)
    )
    values = [
        (name, key, np.array([length, 0], np.float32)) for name, key, length in (("a", "1", 3), ("b", "2", 5))
    ]
    assert recipe.measure(values)["vector_length"] == pytest.approx(4)


def test_more_numbers_than_features_are_refused() -> None:
    with pytest.raises(UserError, match="at most the 16 features"):
        build_embedding(Choice("tests.tiny:build"), EmbeddingForm(dimensions=17), trained=False)


def test_a_person_of_two_parts_is_refused(tmp_path: Path) -> None:
    photos = tmp_path / "people"
    people(photos / "train", 4, 4)
    people(photos / "test", 3, 4)
    with pytest.raises(UserError, match="'p00', 'p01'.* train and test|'p00'.*train and test"):
        launch(job(photos, tmp_path / "out", {"validation": 0.4}), QUIET)


def test_people_with_one_picture_are_counted_and_learned_from(tmp_path: Path) -> None:
    photos = people(tmp_path / "people", 12, 4)
    for person in range(0, 12, 2):
        for number in range(1, 4):
            (photos / f"p{person:02}" / f"{number}.png").unlink()
    launch(job(photos, tmp_path / "out", {"epochs": 1, "test": 0.0}), QUIET)
    about = model_of(tmp_path / "out")
    lone = sum(int(name[1:]) % 2 == 0 for name in about["classes"])
    assert lone
    assert (
        f"; {lone} of {len(about['classes'])} classes have one training image and make no pair"
        in about["data"]["how"]
    )


def test_people_of_one_picture_each_can_not_validate(tmp_path: Path) -> None:
    photos = people(tmp_path / "people", 10, 1)
    with pytest.raises(
        UserError, match=r"two classes at least .* the validation has 3 images of 3 classes\n"
    ):
        launch(job(photos, tmp_path / "out"), QUIET)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"augment": {"mixup": 0.2}}, r"train\.augment\.mixup: not for embeddings"),
        ({"loss": {"dice": 1.0}}, r"train\.loss: not for embeddings"),
    ],
)
def test_what_embeddings_do_not_learn_by_is_refused(
    tmp_path: Path, train: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        launch(job(people(tmp_path / "people", 8, 3), tmp_path / "out", train), QUIET)


def test_a_classifier_refuses_what_embeddings_learn_by(tmp_path: Path) -> None:
    photos = tiny.colours(tmp_path / "colours", 6)
    with pytest.raises(UserError, match=r"train\.embedding: not for classifiers"):
        launch(tiny.job(photos, tmp_path / "out", {"embedding": {"kind": "arcface"}}), QUIET)
