"""How a network runs is chosen by measuring: the fastest of those that say the same, once for an output."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cnnbatch
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.autotune import agreement as guard
from cnnbatch.inference.autotune import candidates as candidates_module
from cnnbatch.inference.autotune import measure
from cnnbatch.inference.autotune.candidates import (
    MOST_S,
    Budget,
    TuningCandidate,
    TuningTrial,
    best,
    candidates,
    decided_already,
)
from cnnbatch.inference.autotune.store import FirstImages, SettingsStore
from cnnbatch.inference.messages import Ready
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.inference.worker.devices import operators_on_cpu
from cnnbatch.inference.worker.settings import Settings, choose
from cnnbatch.inference.worker.worker import ImageOutputs
from cnnbatch.job import MapJob
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage
from cnnbatch.types import Backend, ImageRef, Precision, Shard

Photos = Callable[[int], Path]
QUIET = RunOptions(quiet=True)
ALL: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
BACKENDS: tuple[Backend, ...] = ("eager", "compile", "openvino")


@pytest.fixture(autouse=True)
def _own_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what its task said of the budget."""
    monkeypatch.setattr(candidates_module, "SHARE", candidates_module.SHARE)
    monkeypatch.setattr(candidates_module, "LOADING_S", candidates_module.LOADING_S)


def job(photos: Path, out: Path, task: dict[str, Any] | None = None, **compute: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {"name": "tests.paced:Paced", **(task or {})},
            "input": {"url": str(photos), "shard_size": 30},
            "output": str(out),
            "compute": {
                "pool": "inline",
                "batch": 4,
                "cpus_per_worker": 1,
                "precision": "fp32",  # What auto finds depends on the processor.
                **compute,
            },
        }
    )


def settled(out: Path) -> list[dict[str, Any]]:
    """Return what is kept for each kind of device."""
    return [json.loads(path.read_text()) for path in sorted((out / "_job" / "settings").iterdir())]


def said_by_parts(out: Path, name: str) -> set[str]:
    """Return what the footers of the parts say."""
    output = Output(str(out), Storage())
    return {output.footer(index)[name] for index in output.finished()}


def verdicts(out: Path) -> dict[str, str]:
    """Return what came of each way."""
    (kept,) = settled(out)
    return {one["backend"]: one["verdict"] for one in kept["trials"]}


def labels(out: Path) -> set[str | None]:
    """Return by which backends the rows were made."""
    return set(cnnbatch.open(str(out)).arrow(["label"])["label"].to_pylist())


@pytest.mark.slow
def test_the_fastest_is_chosen_and_kept(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out), QUIET)
    assert verdicts(out) == {"eager": "slower", "openvino": "chosen", "compile": "slower"}
    (kept,) = settled(out)
    rates = {one["backend"]: one["rate"] for one in kept["trials"]}
    assert rates["openvino"] > 2 * rates["eager"]
    agreement = next(one for one in kept["trials"] if one["backend"] == "openvino")["agreement"]
    assert agreement == {"class agreement": 1.0, "mean |Δ top-1 probability|": 0.0}
    assert labels(out) == {"openvino"}
    assert said_by_parts(out, "backend") == {"openvino"}


@pytest.mark.slow
def test_a_narrower_precision_is_chosen_where_the_processor_has_it(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbatch.inference.autotune.measure.has_bf16", lambda device: True)
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out, precision="auto"), QUIET)
    (kept,) = settled(out)
    tried = {f"{one['precision']} {one['backend']}": one["verdict"] for one in kept["trials"]}
    assert tried == {
        "fp32 eager": "slower",
        "bf16 eager": "slower",
        "bf16 openvino": "chosen",
        "bf16 compile": "slower",
        "fp32 openvino": "not tried",
        "fp32 compile": "not tried",
    }
    assert said_by_parts(out, "precision") == {"bf16"}


@pytest.mark.slow
def test_what_says_something_else_is_out(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out, {"shift": {"openvino": 1}}), QUIET)
    assert verdicts(out) == {"eager": "slower", "openvino": "other results", "compile": "chosen"}
    (kept,) = settled(out)
    reason = next(one for one in kept["trials"] if one["backend"] == "openvino")["reason"]
    assert reason == "class agreement 0, at least 0.99"
    assert labels(out) == {"compile"}


@pytest.mark.slow
def test_random_weights_have_nothing_to_guard_and_say_so(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out, {"shift": {"openvino": 1}, "weights": "random:0"}), QUIET)
    assert verdicts(out)["openvino"] == "chosen"
    (kept,) = settled(out)
    reason = next(one for one in kept["trials"] if one["verdict"] == "chosen")["reason"]
    assert "random weights" in reason


@pytest.mark.slow
def test_what_is_not_there_is_out_with_its_reason(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out, {"unavailable": ("openvino", "compile")}), QUIET)
    assert verdicts(out) == {"eager": "chosen", "openvino": "not available", "compile": "not available"}
    (kept,) = settled(out)
    assert [one["reason"] for one in kept["trials"]][1:] == ["planted: no openvino", "planted: no compile"]


@pytest.mark.slow
def test_a_way_that_the_network_refuses_does_not_end_the_run(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out, {"refused": "openvino"}), QUIET)
    assert verdicts(out) == {"eager": "slower", "openvino": "not available", "compile": "chosen"}
    with pytest.raises(UserError, match="infinite outputs"):
        run(job(folder, tmp_path / "named", {"refused": "openvino"}, backend="openvino"), QUIET)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "share"), [(99, 100.0), (110, 0.1)], ids=["few images", "a small budget"])
def test_a_job_that_is_too_small_waits_for_nothing(
    count: int, share: float, photos: Photos, tmp_path: Path
) -> None:
    folder, out = photos(count), tmp_path / "out"
    run(job(folder, out, {"share": share}), QUIET)
    assert labels(out) == {"eager"}
    (kept,) = settled(out)
    assert [one["verdict"] for one in kept["trials"]] == (["chosen"] if count > 99 else [])
    if count > 99:
        assert "10% of what this job takes" in kept["trials"][0]["reason"]


@pytest.mark.slow
def test_broken_pictures_are_no_sample(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    for path in sorted(folder.rglob("*.jpg"))[:20]:
        path.write_bytes(b"no picture")
    run(job(folder, out), QUIET)
    (kept,) = settled(out)
    assert "images of the sample could be predicted" in kept["trials"][0]["reason"]
    assert labels(out) == {"eager", None}


@pytest.mark.slow
def test_a_second_run_goes_on_as_the_first_has_settled(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out), QUIET)
    before = settled(out)
    (out / "predictions" / "part-00000001.parquet").unlink()
    run(job(folder, out), QUIET)
    assert settled(out) == before
    assert labels(out) == {"openvino"}


def test_a_backend_that_is_named_and_not_possible_is_an_error(photos: Photos, tmp_path: Path) -> None:
    folder = photos(3)
    with pytest.raises(UserError, match="compute.backend: compile can't be used here: planted: no compile"):
        run(job(folder, tmp_path / "out", {"unavailable": ("compile",)}, backend="compile"), QUIET)
    run(job(folder, tmp_path / "named", backend="compile"), QUIET)
    assert labels(tmp_path / "named") == {"compile"}


@pytest.mark.slow
def test_a_backend_that_the_output_has_and_the_machine_lacks_is_the_machines_fault(
    photos: Photos, tmp_path: Path
) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out), QUIET)
    (out / "predictions" / "part-00000001.parquet").unlink()
    lacking = job(folder, out, {"unavailable": ("openvino",)})
    (
        out / "_job" / "identity.json"
    ).unlink()  # The planted lack is a field of the task, which is another job's.
    with pytest.raises(EnvironmentFault, match="openvino, by which this output is made"):
        run(lacking, QUIET)


def test_a_task_that_does_not_know_a_backend_refuses_it(photos: Photos, tmp_path: Path) -> None:
    spec = job(photos(3), tmp_path / "out", backend="openvino")
    toy = MapJob.model_validate({**spec.model_dump(), "task": {"name": "tests.toy:Toy"}})
    with pytest.raises(
        UserError, match=r"compute.backend: expected auto or what the task .* knows \(eager\)"
    ):
        run(toy, QUIET)


@pytest.mark.slow
def test_one_worker_measures_and_all_follow(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(200), tmp_path / "out"
    run(job(folder, out, pool="local", workers=2), QUIET)
    (kept,) = settled(out)
    assert kept["backend"] == "openvino"
    assert labels(out) == {"openvino"}


def test_what_else_a_process_does_in_one_window_says_nothing_of_a_way() -> None:
    class Timed:
        settings = Settings("cpu:none", "fp32", 4, 8, 1)

        def outputs(self, shard: Shard, clock: Any) -> Iterator[ImageOutputs]:
            for position in range(24):  # Three windows, in one of which something else had the processor.
                yield ImageOutputs(position, [], 0.1 if 8 <= position < 16 else 0.001, 0.002)

    worker: Any = Timed()
    found = object.__new__(measure._Measuring)._pass(worker, Shard(0, ()))
    assert found.forward_s == 0.001
    assert found.decode_s == pytest.approx(0.002)
    assert len(found.outputs) == 24


@pytest.mark.slow
def test_a_way_that_kills_its_process_costs_no_image(photos: Photos, tmp_path: Path) -> None:
    folder, out, died = photos(200), tmp_path / "out", tmp_path / "died"
    summary = run(job(folder, out, {"dies": "openvino", "died": str(died)}, pool="local", workers=2), QUIET)
    assert died.exists()
    assert (summary.images, summary.failed) == (200, {})
    assert labels(out) == {"eager"}


def test_one_output_has_one_precision_unless_mixing_is_allowed(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(60), tmp_path / "out"
    run(job(folder, out, precision="fp32"), QUIET)
    (out / "predictions" / "part-00000001.parquet").unlink()
    narrow = job(folder, out, precision="bf16")
    with pytest.raises(UserError, match="precision: the output has 'fp32', this job has 'bf16'"):
        run(narrow, QUIET)
    run(narrow, RunOptions(quiet=True, allow_mixed=True))
    assert said_by_parts(out, "precision") == {"fp32", "bf16"}


@pytest.mark.parametrize(
    ("device", "bf16", "expected"),
    [
        ("cpu", False, ["fp32 eager", "fp32 openvino", "fp32 compile"]),
        ("cpu", True, ["bf16 eager", "bf16 openvino", "bf16 compile"]),
        ("cuda", True, ["bf16 eager", "bf16 compile", "fp16 eager", "fp16 compile"]),
        ("cuda", False, ["fp16 eager", "fp16 compile", "fp32 eager", "fp32 compile"]),
        ("mps", False, ["fp16 eager", "fp32 eager"]),
    ],
)
def test_only_what_a_device_is_good_at_is_tried(device: str, bf16: bool, expected: list[str]) -> None:
    found = candidates(device, bf16, ALL, BACKENDS)
    assert [f"{one.precision} {one.backend}" for one in found][: len(expected)] == expected
    assert candidates(device, bf16, {"fp32"}, {"eager"}) == [
        TuningCandidate("fp32", "eager", tf32=device == "cuda")
    ]


def test_the_budget_is_a_part_of_what_the_job_takes() -> None:
    budget = Budget(images=4000, workers=2, seconds_each=0.03)
    assert budget.whole_s == 15
    assert budget.reason_against(15) == ""
    budget.spent_s = 10
    assert budget.reason_against(6) == (
        "would take about 6 s; 5 s are left of 15 s, 25% of what this job takes"
    )
    budget.images = 10**9
    assert "600 s, the most for any job" in budget.reason_against(700)
    assert Budget(10**9, 1, 1.0).whole_s == MOST_S


def trial(precision: Any, backend: Any, rate: float | None) -> TuningTrial:
    return TuningTrial(precision, backend, 16, False, "slower", rate=rate)


def test_a_plainer_way_that_is_nearly_as_fast_is_chosen() -> None:
    eager, near, far = (
        trial("fp32", "eager", 100),
        trial("fp32", "openvino", 102),
        trial("fp32", "compile", 104),
    )
    assert best([eager, near]) is eager
    assert best([eager, near, far]) is far
    assert best([trial("fp32", "eager", None), near]) is near


def test_a_wider_precision_is_not_tried_after_a_faster_narrower_one() -> None:
    narrow = trial("bf16", "openvino", 200)
    wide = TuningCandidate("fp32", "openvino")
    assert decided_already(wide, [narrow], 100) == "bf16 is faster already"
    assert decided_already(wide, [trial("bf16", "openvino", 90)], 100) == ""
    assert decided_already(TuningCandidate("bf16", "compile"), [narrow], 100) == ""
    assert (
        decided_already(TuningCandidate("fp16", "eager"), [narrow], 100)
        == "bf16 gives the same results already"
    )


def test_a_wider_precision_is_tried_where_the_narrower_one_gives_other_results_by_that_backend() -> None:
    passed_elsewhere = trial("bf16", "compile", 110)
    assert decided_already(TuningCandidate("fp32", "openvino"), [passed_elsewhere], 100) == ""


@pytest.mark.parametrize(
    ("images", "workers", "sampled"), [(120, 1, 104), (4000, 1, 200), (4000, 2, 104), (10**6, 8, 400)]
)
def test_a_large_job_is_sampled_by_more_images(
    tmp_path: Path, images: int, workers: int, sampled: int
) -> None:
    refs = [ImageRef(f"{number:04}", f"{number:04}") for number in range(1000)]
    store = SettingsStore(
        job(tmp_path, tmp_path), Output(str(tmp_path), Storage()), FirstImages(refs, lambda: images)
    )
    ready = Ready({"device": "cpu:AVX2"}, {}, "host", "journal", 0, 0, open=True)
    sample = store.sample(ready, workers)
    assert sample is not None
    assert len(sample.shard.refs) == sampled


def probabilities(*rows: list[float]) -> list[dict[str, Tensor]]:
    return [{"probabilities": torch.tensor(row)} for row in rows]


def test_classes_are_compared_where_they_are_clear() -> None:
    reference = probabilities([0.9, 0.1], [0.52, 0.48], [0.2, 0.8], [0.7, 0.3])
    found = probabilities([0.8, 0.2], [0.49, 0.51], [0.2, 0.8], [0.3, 0.7])
    measured = guard.agreement(reference, found)
    assert measured["class agreement"] == pytest.approx(2 / 3)  # The second is a near tie: it does not count.
    assert measured["mean |Δ top-1 probability|"] == pytest.approx((0.1 + 0.01 + 0 + 0) / 4)
    assert guard.beyond(measured) == "class agreement 0.6667, at least 0.99"
    assert guard.beyond(guard.agreement(reference, reference)) == ""


def boxes(*rows: tuple[float, float, float, float, float, int]) -> dict[str, Tensor]:
    values = torch.tensor(rows).reshape(-1, 6)
    return {"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}


def test_boxes_are_matched_by_class_and_overlap_from_either_side() -> None:
    one = boxes((0, 0, 100, 100, 0.9, 1), (50, 50, 90, 90, 0.5, 2), (0, 0, 9, 9, 0.1, 1))
    moved = boxes((0, 0, 100, 101, 0.2, 1), (50, 50, 90, 90, 0.5, 2))
    assert guard.agreement([one], [moved])["boxes matched"] == 1  # Below a score of 0.3 it still is there.
    other = boxes((0, 0, 100, 100, 0.9, 3), (50, 50, 90, 90, 0.5, 2))
    assert guard.agreement([one], [other])["boxes matched"] == pytest.approx(2 / 4)
    doubled = boxes((0, 0, 100, 100, 0.9, 1), (0, 0, 100, 100, 0.8, 1), (50, 50, 90, 90, 0.5, 2))
    assert guard.agreement([one], [doubled])["boxes matched"] == pytest.approx(4 / 5)
    assert guard.agreement([boxes()], [boxes()])["boxes matched"] == 1


def test_masks_are_compared_where_their_boxes_match() -> None:
    found = [boxes((0, 0, 100, 100, 0.9, 1), (50, 50, 90, 90, 0.5, 2), (0, 0, 9, 9, 0.1, 1))]
    masks = torch.zeros((3, 1, 10, 10))
    masks[0, 0, :5], masks[1, 0, 2:, 2:] = 0.9, 0.6
    one, same = ([guard.kept({**found[0], "masks": some})] for some in (masks, masks + 0.05))
    assert one[0]["masks"].dtype == torch.bool
    measured = guard.agreement(one, same)
    assert measured == {"boxes matched": 1.0, "mask pixels that agree": 1.0}
    masks[0, 0, 5:7] = 0.9  # Twenty of the two hundred pixels of sure boxes.
    other = [guard.kept({**found[0], "masks": masks})]
    measured = guard.agreement(one, other)
    assert measured["mask pixels that agree"] == pytest.approx(0.9)
    assert guard.beyond(measured) == "mask pixels that agree 0.9, at least 0.98"


def test_embeddings_are_compared_where_their_boxes_match() -> None:
    found = boxes((0, 0, 100, 100, 0.9, 1), (50, 50, 90, 90, 0.5, 2), (0, 0, 9, 9, 0.1, 1))
    vectors = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
    changed = vectors + torch.tensor([[0.0, 0.5], [0.0, 0.0], [9.0, 9.0]])  # The last is not sure.
    one, other = ([guard.kept({**found, "embeddings": some})] for some in (vectors, changed))
    measured = guard.agreement(one, other)
    assert measured["largest change of an embedding"] == pytest.approx(0.1, rel=0.2)  # 0.5 of 5, or of 5.4.
    assert guard.beyond(measured).startswith("largest change of an embedding 0.1")
    assert guard.agreement(one, one)["largest change of an embedding"] == 0


def test_outputs_of_several_networks_are_compared_each_by_its_own() -> None:
    maps = {"map": torch.zeros((4, 4), dtype=torch.uint8), "confidence": torch.tensor(0.9)}
    other = {**maps, "map": torch.ones((4, 4), dtype=torch.uint8)}
    found = boxes((0, 0, 100, 100, 0.9, 1))
    measured = guard.agreement([maps, found] * 2, [other, found] * 2)
    assert measured["pixels of the same class"] == 0
    assert measured["boxes matched"] == 1


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_networks_of_objects_the_worse_counts(backwards: bool) -> None:
    one = boxes((0, 0, 100, 100, 0.9, 1))
    other = boxes((100, 100, 200, 200, 0.9, 1))
    masks = {"masks": torch.ones((1, 1, 4, 4), dtype=torch.bool)}
    reference, found = [one, {**one, **masks}], [other, {**one, **masks}]
    if backwards:
        reference, found = reference[::-1], found[::-1]
    measured = guard.agreement(reference, found)
    assert measured == {"boxes matched": 0.0, "mask pixels that agree": 1.0}
    assert guard.beyond(measured) == "boxes matched 0, at least 0.98"


def test_the_worst_of_several_numbers_is_one_that_is_none() -> None:
    assert guard.Limit(0.9, at_least=True).worst([0.8, 0.95]) == 0.8
    assert guard.Limit(0.1, at_least=False).worst([0.8, 0.95]) == 0.95
    assert math.isnan(guard.Limit(0.1, at_least=False).worst([0.8, math.nan]))


def test_embeddings_are_compared_by_the_decisions_on_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(120, 16, generator=generator)
    reference = [{"embedding": vector} for vector in vectors]
    near = [{"embedding": vector + 1e-5} for vector in vectors]
    far = [{"embedding": vector} for vector in torch.randn(120, 16, generator=generator)]
    assert guard.beyond(guard.agreement(reference, near, threshold=0.3)) == ""
    similar = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2) >= 0.3
    others = torch.stack([one["embedding"] for one in far])
    similar_far = torch.nn.functional.cosine_similarity(others[:, None], others[None], dim=2) >= 0.3
    off_diagonal = ~torch.eye(120, dtype=torch.bool)
    expected = float((similar != similar_far)[off_diagonal].float().mean())
    measured = guard.agreement(reference, far, threshold=0.3)["pairs decided otherwise"]
    assert measured == pytest.approx(expected, abs=0.02)
    assert guard.agreement(reference, far)["least cosine of embeddings"] < 0.5


def test_maps_are_compared_by_the_share_of_equal_pixels() -> None:
    one = torch.zeros((40, 50), dtype=torch.uint8)
    other = one.clone()
    other[:10] = 3
    reference = [{"map": one, "confidence": torch.tensor(0.9)}, {"map": one, "confidence": torch.tensor(0.5)}]
    found = [{"map": one, "confidence": torch.tensor(0.9)}, {"map": other, "confidence": torch.tensor(0.6)}]
    measured = guard.agreement(reference, found)
    assert measured == pytest.approx({"pixels of the same class": 0.875, "mean |Δ confidence|": 0.05})
    assert guard.beyond(measured) == (
        "pixels of the same class 0.875, at least 0.99; mean |Δ confidence| 0.05, at most 0.03"
    )
    assert guard.beyond(guard.agreement(reference, reference)) == ""


def test_of_a_large_map_only_a_grid_is_kept() -> None:
    whole = torch.arange(1000 * 70, dtype=torch.int32).view(1000, 70)
    output = {"map": whole, "confidence": torch.tensor(0.5), "cells": torch.zeros(32, 32)}
    found = guard.kept(output)
    assert set(found) == {"map", "confidence"}
    assert found["map"].shape == (63, 35)
    assert torch.equal(found["map"], whole[::16, ::2])
    assert found["map"].untyped_storage().nbytes() < whole.untyped_storage().nbytes()
    plain = {"values": torch.zeros(8)}
    assert guard.kept(plain) is plain


def test_what_the_output_keeps_wins_over_the_rule(photos: Photos, tmp_path: Path) -> None:
    spec = job(photos(3), tmp_path / "out", precision="auto")
    settings, is_open = choose(spec, False, None)
    assert (settings.precision, settings.backend, is_open) == ("fp32", "eager", True)
    kept = Settings(settings.device, "bf16", 4, 32, 3, "compile")
    found, is_open = choose(spec, False, {"precision": "bf16", kept.key: kept.to_json()})
    assert (found.precision, found.backend, is_open) == ("bf16", "compile", False)


def test_operators_that_an_apple_gpu_lacks_are_named() -> None:
    lacking = (
        "The operator 'torchvision::nms' is not currently supported on the MPS backend and will fall back"
    )
    with pytest.warns(UserWarning, match="another"), operators_on_cpu() as found:  # noqa: PT031
        warnings.warn(lacking, UserWarning, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert found == ["torchvision::nms"]
