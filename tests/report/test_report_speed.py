"""The page says which ways through the network were measured, why one won, and what mixed parts there are."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cnnbatch.inference.autotune import agreement as guard
from cnnbatch.inference.autotune.candidates import TuningTrial, Verdict
from cnnbatch.inference.summary import Summary, say_summary
from cnnbatch.output.folder import Output
from cnnbatch.report.ways import MEANINGS, Way, devices, mixed, on_cpu, ran_by
from cnnbatch.results import Result
from cnnbatch.storage import Storage
from cnnbatch.terminal.screen import Screen
from cnnbatch.types import Backend, Precision
from tests.outputs import Part, good, write_job, write_output, write_part, write_settings
from tests.report.test_report import HOSTILE, Page, png, report, words

CPU = "cpu:AVX512 bf16"
TOO_LONG = "would take about 63 s of the 2 s left of 13 s, 25% of what this job takes"
FASTEST = "the fastest of those that give the same results"
Agreement = Mapping[str, float]


def trial(
    way: tuple[Precision, Backend],
    verdict: Verdict,
    reason: str = "",
    rate: float | None = None,
    agreement: Agreement | None = None,
    batch: int = 16,
    tf32: bool = False,
) -> dict[str, Any]:
    """Return a trial as measuring keeps it."""
    limits = {name: guard.limits()[name].to_json() for name in agreement or {}}
    made = TuningTrial(*way, batch, tf32, verdict, reason, rate, None, agreement or {}, limits)
    kept: dict[str, Any] = json.loads(json.dumps(made.to_json()))
    return kept


def classes(same: float, shift: float) -> Agreement:
    return {"class agreement": same, "mean |Δ top-1 probability|": shift}


EAGER = trial(("fp32", "eager"), "slower", rate=40.0)
MEASURED = [
    EAGER,
    trial(("bf16", "eager"), "other results", "told by the checks", 90.0, classes(0.98996, 0.0182)),
    trial(("bf16", "compile"), "not tried", TOO_LONG),
    trial(("bf16", "openvino"), "not available", "OpenVINO does not compute in bf16 on this processor"),
    trial(("fp32", "openvino"), "chosen", FASTEST, 50.0, classes(1.0, 5.6e-7)),
    trial(("fp32", "openvino"), "slower", rate=51.0, batch=32),
    trial(("fp32", "compile"), "slower", rate=20.0),
]


def measured(folder: Path, trials: Sequence[dict[str, Any]], device: str = CPU) -> Output:
    write_settings(folder, device, trials)
    return Output(str(folder), Storage())


def ways(folder: Path, trials: Sequence[dict[str, Any]]) -> list[Way]:
    ((_, _, found),) = devices(measured(folder, trials))
    return list(found)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_output(tmp_path / "out", [[good("a.png", png(tmp_path), [("cat", 0.5)])]])


def test_the_page_has_every_way_and_why_one_won(out: Path) -> None:
    write_settings(out, CPU, MEASURED)
    html = report(out)
    text = words(html)
    for told in (
        "CPU with AVX512 bf16 Ran by OpenVINO fp32, 1.25 times as fast as eager fp32: the fastest of those",
        "OpenVINO fp32 batches of 16 50 1.25 class agreement 1, at least 0.99 mean |Δ top-1 probability|"
        " 0.0001, at most 0.03 ✓ chosen",
        "OpenVINO fp32 batches of 32 51 1.27 as in batches of 16 hardly faster",
        "eager fp32 batches of 16 40 1 the reference slower",
        "torch.compile fp32 batches of 16 20 0.5 not compared slower",
        "0.0182, at most 0.03 gives other results OpenVINO fp32",
        f"not tried: {TOO_LONG}",
        "not available here: OpenVINO does not compute in bf16 on this processor",
    ):
        assert told in text
    assert html.count('class="chosen"') == 1
    assert 'class="beyond">class agreement <b>0.9899</b>' in html
    bars = re.findall(r"width:([\d.]+)%", html.partition('id="ran"')[2])
    assert [float(bar) for bar in bars] == [100, 56.7, 55.6, 44.4, 22.2, 0, 0]


def test_the_report_is_made_without_torch(out: Path) -> None:
    write_settings(out, CPU, MEASURED)
    assert "torch" not in loaded_by_the_report(out, "pass")
    assert "Backend and precision" in (out / "report.html").read_text()


@pytest.mark.slow
def test_what_a_run_preloads_is_what_the_report_would_have_to_import(out: Path) -> None:
    write_settings(out, CPU, MEASURED)
    large = {"cnnbatch.report.page", "pandas"}  # pandas is what pyarrow imports, where it is installed.
    assert large <= loaded_by_the_report(out, "pass")
    assert not large & loaded_by_the_report(out, "from cnnbatch.report import preload; preload()")


def loaded_by_the_report(folder: Path, first: str) -> set[str]:
    """Return the modules that are loaded while the report is written, not those that ``first`` had loaded."""
    code = (
        "import sys; from cnnbatch.report import write_report; from cnnbatch.storage import Storage;"
        f"{first}; before = {{*sys.modules}};"
        f"write_report({str(folder)!r}, Storage()); print(*sys.modules.keys() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_each_kind_of_device_has_its_own(out: Path) -> None:
    write_settings(out, CPU, MEASURED)
    reference = trial(("fp32", "eager"), "reference", rate=800.0, batch=64)
    boxes = trial(("bf16", "compile"), "chosen", FASTEST, 2400.0, {"boxes matched": 0.999}, 64)
    tf32 = trial(("fp32", "eager"), "not tried", "bf16 is faster already", batch=64, tf32=True)
    write_settings(out, "cuda:NVIDIA H200", [reference, boxes, tf32])
    write_settings(out, "mps", [trial(("fp32", "eager"), "chosen", TOO_LONG)])
    text = words(report(out))
    assert "NVIDIA H200 Ran by torch.compile bf16, 3 times as fast as eager fp32" in text
    assert "eager fp32 batches of 64 800 1 the reference only to compare with" in text
    assert "eager fp32 with TF32 batches of 64 – – not tried: bf16 is faster already" in text
    assert f"Apple GPU Ran by eager fp32, without measuring: {TOO_LONG}. Reproducibility" in text


def test_nothing_is_said_where_nothing_was_to_choose(out: Path) -> None:
    assert "Backend and precision" not in Page(report(out)).headings
    write_settings(out, CPU, [])
    assert "Backend and precision" not in Page(report(out)).headings


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ([trial(("fp32", "openvino"), "not available", "no")], "no other way could be measured."),
        (
            [trial(("fp32", "openvino"), "slower", rate=41.0, agreement=classes(1, 0))],
            "no other way that gives the same results was clearly faster.",
        ),
    ],
)
def test_eager_fp32_wins_where_nothing_beats_it(
    others: list[dict[str, Any]], why: str, tmp_path: Path
) -> None:
    chosen = {**EAGER, "verdict": "chosen", "reason": FASTEST}
    output = measured(tmp_path, [chosen, *others])
    (device,) = devices(output)
    assert device.why == f"Ran by eager fp32: {why}"
    assert ran_by(output) == ""


@pytest.mark.parametrize(
    ("name", "value", "shown", "beyond"),
    [
        ("class agreement", 0.98999, "0.9899", True),
        ("class agreement", 0.99, "0.99", False),
        ("class agreement", 0.99999, "0.9999", False),
        ("mean |Δ top-1 probability|", 0.03, "0.03", False),
        ("mean |Δ top-1 probability|", 0.030001, "0.0301", True),
        ("pairs decided otherwise", 0.0, "0", False),
        ("least cosine of embeddings", math.nan, "not a number", True),
    ],
)
def test_a_value_is_shown_on_its_side_of_the_limit(
    name: str, value: float, shown: str, beyond: bool, tmp_path: Path
) -> None:
    chosen = trial(("fp32", "openvino"), "chosen", FASTEST, 50.0, {name: value})
    (check,) = ways(tmp_path, [EAGER, chosen])[0].checks
    assert (check.value, check.beyond) == (shown, beyond)
    assert check.beyond is not guard.limits()[name].holds(value)


@pytest.mark.parametrize("name", guard.limits())
def test_what_the_guard_measures_has_a_meaning(name: str) -> None:
    assert MEANINGS[name]


def test_hostile_reasons_and_devices_stay_text(out: Path) -> None:
    reason = f"{HOSTILE} at https://user:word@host/a.pt?X-Amz-Signature=5ec3e7"
    write_settings(out, CPU, [*MEASURED, trial(("fp16", "eager"), "not available", reason)])
    write_settings(out, "mps", [trial(("fp32", "eager"), "chosen", reason)])
    (out / "_job" / "settings" / "mps-fp32.json").rename(out / "_job" / "settings" / "other.json")
    settings = json.loads((out / "_job" / "settings" / "other.json").read_text())
    hostile = json.dumps({**settings, "device": f"cuda:{HOSTILE}"})
    (out / "_job" / "settings" / "other.json").write_text(hostile)
    html = report(out)
    page = Page(html)
    assert page.tags["script"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) == 3
    assert html.count("https://host/a.pt") == 2
    assert "word@" not in html
    assert "5ec3e7" not in html


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"device": "mps"}',
        '{"device": "mps", "trials": [{}]}',
        json.dumps({"device": "mps", "trials": [EAGER]}),
        json.dumps({"device": "mps", "trials": [{**EAGER, "verdict": "chosen", "rate": math.inf}, EAGER]}),
    ],
)
def test_a_damaged_record_is_none(text: str, out: Path) -> None:
    path = out / "_job" / "settings" / "mps-fp32.json"
    path.parent.mkdir()
    path.write_text(text)
    assert devices(Output(str(out), Storage())) == []
    assert ran_by(Output(str(out), Storage())) == ""
    assert "Backend and precision" not in Page(report(out)).headings


def test_no_picture_of_the_sample_that_could_be_timed_leaves_no_rate(tmp_path: Path) -> None:
    trials = [{**EAGER, "rate": 0.0}, trial(("fp32", "openvino"), "chosen", FASTEST, 0.0)]
    assert [(way.rate, way.share, way.times) for way in ways(tmp_path, trials)] == [("", 0.0, "")] * 2


def test_an_output_of_several_precisions_says_so_with_counts(tmp_path: Path) -> None:
    file = png(tmp_path)
    rows = [good(f"{n}.png", file, [("cat", 0.5)]) for n in range(1300)]
    out = tmp_path / "out"
    write_job(out)
    write_part(out, 0, rows[:1100], Part(backend="compile"))
    write_part(out, 1, rows[1100:1299], Part(precision="bf16", backend="openvino"))
    write_part(out, 2, rows[1299:], Part(backend=""))
    text = words(report(out))
    assert "may differ a little from part to part: fp32 for 1,101 images, bf16 for 199 images." in text
    assert (
        "run by several backends: torch.compile for 1,100 images, OpenVINO for 199 images,"
        " a way that is not recorded for 1 image." in text
    )
    assert "What was measured" not in text


def test_an_output_of_one_precision_has_nothing_to_say_of_it(out: Path) -> None:
    assert mixed(Result(str(out), Storage()).receipts()) == []
    assert mixed([]) == []


def test_a_run_ends_with_the_way_that_was_faster(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, summary = measured(out, MEASURED), Summary(str(out), 50, 50, {}, 1.0, 0)
    say_summary(summary, None, output, Screen(quiet=False))
    assert "\n  ran by: openvino fp32, 1.25 times eager fp32 (see the report)\n" in capsys.readouterr().out
    measured(out, [trial(("fp32", "eager"), "chosen", TOO_LONG)])
    say_summary(summary, None, output, Screen(quiet=False))
    assert "ran by" not in capsys.readouterr().out


def test_a_run_on_several_devices_names_each_way_once(tmp_path: Path) -> None:
    measured(tmp_path, MEASURED)
    measured(tmp_path, MEASURED, "cpu:AVX2")
    fast = trial(("bf16", "compile"), "chosen", FASTEST, 100.0)
    output = measured(tmp_path, [EAGER, fast], "cuda:NVIDIA H200")
    assert ran_by(output) == "compile bf16, 2.5 times eager fp32; openvino fp32, 1.25 times eager fp32"


def test_decoding_on_the_gpu_is_named_beside_the_way_that_it_was_tried_for(out: Path) -> None:
    fast = trial(("bf16", "compile"), "slower", rate=2400.0)
    why = "with decoding on the device 900 images a second, else 400"
    decoded = {**trial(("bf16", "compile"), "chosen", why, 2390.0), "decoder": "cuda"}
    output = measured(out, [EAGER, fast, decoded], "cuda:NVIDIA H200")
    (device,) = devices(output)
    assert device.why == f"Ran by torch.compile bf16, decoding on the GPU: {why}."
    assert ran_by(output) == "compile bf16, decoding on the GPU"
    assert [way.name for way in device.ways if way.chosen] == ["torch.compile bf16, decoding on the GPU"]


def test_what_an_accelerator_lacks_is_named(out: Path) -> None:
    write_settings(out, "mps", [], ["torchvision::nms"])
    assert on_cpu(Output(str(out), Storage())) == [
        "The CPU ran what the accelerator lacks: torchvision::nms."
    ]
