"""The commands: exit status, words, and what they import."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import EnvironmentFault, OutputHeld, UserError
from tests.places import CHECKOUT

JOB = "task: {name: classify, model: mobilenet_v2}\ninput: photos\noutput: out\n"


@dataclass(frozen=True)
class Options:
    retry_failed: bool = False
    new: bool = False
    prune: bool = False
    allow_mixed: bool = False
    quiet: bool = False


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int]], None]:
    """Return a function that puts another engine behind the command."""

    def replace(engine: Callable[..., int]) -> None:
        options_of: Any = types.ModuleType("cnnbatch.inference.run")
        options_of.RunOptions = Options
        launching: Any = types.ModuleType("cnnbatch.launch")
        launching.launch = lambda job, options: types.SimpleNamespace(exit_status=engine(job, options))
        monkeypatch.setitem(sys.modules, "cnnbatch.inference.run", options_of)
        monkeypatch.setitem(sys.modules, "cnnbatch.launch", launching)

    return replace


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


def test_run_passes_the_job_and_the_options_on(runs: Callable[..., None], job: str) -> None:
    calls: list[Any] = []

    def engine(*call: Any) -> int:
        calls.append(call)
        return 1

    runs(engine)
    arguments = ["input=cats", "input.limit=3", "--retry-failed", "--prune", "--allow-mixed", "--quiet"]
    result = CliRunner().invoke(app, ["run", job, *arguments])
    assert (result.exit_code, result.output) == (1, "")
    [(loaded, options)] = calls
    assert (loaded.input.url, loaded.input.limit) == ("cats", 3)
    assert options == Options(retry_failed=True, prune=True, allow_mixed=True, quiet=True)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("expected a folder, got a file"), 2, "expected a folder, got a file\n"),
        (
            EnvironmentFault("the disk is full", "free some space"),
            3,
            "the disk is full\n  what to do: free some space\n",
        ),
        (OutputHeld("out is held by host, process 7"), 4, "out is held by host, process 7\n"),
        (
            KeyboardInterrupt(),
            130,
            "\nStopped. Finished parts are kept; the same command continues: cnnbatch",
        ),
    ],
)
def test_every_way_to_end_has_its_status_and_no_traceback(
    runs: Callable[..., None], job: str, error: BaseException, status: int, said: str
) -> None:
    def engine(*_: Any) -> int:
        raise error

    runs(engine)
    result = CliRunner().invoke(app, ["run", job])
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith(said)
    assert "Traceback" not in result.output


def test_a_mistake_in_the_job_is_told_before_anything_runs(runs: Callable[..., None], job: str) -> None:
    runs(lambda *_: pytest.fail("the job ran"))
    result = CliRunner().invoke(app, ["run", job, "input.limt=3", "nonsense"])
    assert result.exit_code == 2
    assert "2 mistakes" in result.stderr
    assert "did you mean input.limit?" in result.stderr


def test_an_interrupt_says_which_command_continues(
    runs: Callable[..., None], job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(*_: Any) -> int:
        raise KeyboardInterrupt

    runs(engine)
    monkeypatch.setattr(sys, "argv", ["/venv/bin/cnnbatch", "run", "classify", "input=my photos"])
    result = CliRunner().invoke(app, ["run", job])
    assert result.stderr.strip().splitlines() == [
        "Stopped. Finished parts are kept; the same command continues: "
        "cnnbatch run classify 'input=my photos'"
    ]


def test_jobs_lists_names_with_their_purpose() -> None:
    result = CliRunner().invoke(app, ["jobs"])
    assert result.exit_code == 0
    assert any(line.startswith("demo ") and line.endswith(".") for line in result.stdout.splitlines())


def test_schema_prints_a_json_schema() -> None:
    result = CliRunner().invoke(app, ["schema"])
    jsonschema.Draft202012Validator.check_schema(json.loads(result.stdout))


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"cnnbatch {cnnbatch.__version__}\n")


def test_report_writes_the_page_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[str] = []
    monkeypatch.setattr("cnnbatch.launch.write_report", lambda uri, storage, begin: written.append(uri))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["report", "out"]).exit_code == 0
    assert written == [str(tmp_path / "out")]


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("run", "jobs", "schema", "report", "--version"))


def test_neither_torch_nor_ray_is_imported_to_read_a_job(job: str) -> None:
    code = (
        "import sys, cnnbatch.cli.app; from cnnbatch.job import job_schema, load_job; load_job(sys.argv[1]);"
        "load_job('demo'); job_schema(); heavy = {'torch', 'torchvision', 'timm', 'ray'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, job], check=True, cwd=CHECKOUT)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cnnbatch.cli.app;"
        "heavy = {'pydantic', 'pyarrow', 'numpy', 'obstore'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from the checkout and install it, alone, in a folder elsewhere."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = CHECKOUT
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(checkout),
    ]
    subprocess.run(pip + build, check=True, capture_output=True, text=True)
    [wheel] = folder.glob("cnnbatch-*.whl")
    install = [
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(pip + install, check=True, capture_output=True, text=True)
    return folder / "site"


@pytest.mark.slow
def test_a_wheel_carries_the_jobs_and_the_data(installed: Path) -> None:
    checkout = CHECKOUT
    jobs = {path.name: path.read_bytes() for path in (checkout / "jobs").glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (installed / "cnnbatch" / "jobs").iterdir()} == jobs
    kept = [
        path
        for path in (checkout / "cnnbatch").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert all((installed / path.relative_to(checkout)).is_file() for path in kept)
    assert not (installed / "tests").exists()


def from_wheel(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the wheel in ``folder``, where no checkout is."""
    code = "import sys; from cnnbatch.cli import app; print(app.__file__, file=sys.stderr); app.main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
    )


@pytest.mark.slow
def test_a_wheel_knows_jobs_by_name(installed: Path, tmp_path: Path) -> None:
    done = from_wheel(installed, tmp_path, "jobs")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(installed))
    assert any(line.startswith("demo ") for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_wheel_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    done = from_wheel(
        installed, tmp_path, "run", "demo", "compute.pool=inline"
    )  # tests/test_readme.py: on Ray.
    assert done.returncode == 0, done.stderr
    assert "espresso" in done.stdout
    seen = cnnbatch.open(tmp_path / "cnnbatch-demo").arrow(["key", "label"]).to_pydict()
    assert dict(zip(seen["key"], seen["label"], strict=True))["package:skimage/data/coffee.png"] == "espresso"
    assert (tmp_path / "cnnbatch-demo" / "report.html").stat().st_size > 10_000
