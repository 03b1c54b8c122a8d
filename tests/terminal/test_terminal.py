"""What is printed: names of others steer neither a terminal nor a page, and any encoding will do."""

import ast
import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import cnnbatch
from cnnbatch import terminal
from cnnbatch.cli.app import app
from cnnbatch.report.template import template
from cnnbatch.terminal import console
from cnnbatch.terminal.screen import Screen

HOSTILE = "a\x1b[2J\x07\r\x9b31m\x7f\u202egpj.\u2066\u2028\udcff猫"
SHOWN = r"a\x1b[2J\x07\r\x9b31m\x7f\u202egpj.\u2066\u2028\xff猫"
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""The explicit formatting characters of UAX #9, by their class in the Unicode database."""


def steers(text: str) -> bool:
    return any(
        unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(one) in DIRECTIONS
        for one in text
    )


@given(st.text(st.characters(), max_size=40))
def test_no_character_steers_and_the_others_stay(text: str) -> None:
    assert not steers(terminal.line(text))
    assert not steers(terminal.lines(text).replace("\n", "").replace("\t", ""))
    if not steers(text) and not set(text) & set("\u061c\u200e\u200f\ufff9\ufffa\ufffb"):
        assert terminal.line(text) == text or any(0xE0000 <= ord(one) <= 0xE007F for one in text)


def test_a_name_is_shown_with_escapes() -> None:
    assert terminal.line(HOSTILE) == SHOWN
    assert terminal.line("a\nb\tc") == r"a\nb\tc"
    assert terminal.lines("a\nb\tc\r") == "a\nb\tc\\r"


def test_every_way_to_print_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbatch.terminal.screen.PLAIN_EVERY_S", 0.0)
    table = console.columns(HOSTILE, "other")
    table.add_row(f"{HOSTILE}\nb", HOSTILE)
    console.plain_console().print(HOSTILE)
    console.plain_console().print(table)
    with Screen(quiet=False) as screen:
        screen.note(HOSTILE)
        screen.say(HOSTILE)
        screen.progress(HOSTILE)
    terminal.say(HOSTILE, err=True)
    captured = capsys.readouterr()
    assert not steers((captured.out + captured.err).replace("\n", ""))
    assert captured.out.count(SHOWN) == 5
    assert captured.err.count(SHOWN) == 3


def test_a_page_has_no_character_that_steers() -> None:
    page = template("notebook.html.j2")
    environment = page.environment
    filled = environment.from_string("<p title='{{ name }}'>{{ name }}</p>\n{{ name|e }}").render(
        name=HOSTILE + "<b>"
    )
    assert not steers(filled.replace("\n", ""))
    assert "&lt;b&gt;" in filled
    assert "<b>" not in filled


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stream_of_any_encoding_will_do(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    terminal.say("猫é")
    assert raw.getvalue().decode(encoding).startswith("\\u732b")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names") / "photos"
    folder.mkdir()
    for number, name in enumerate(("猫.jpg", "a\x1b[31m.jpg", "b\nc.jpg", "p #2.jpg", "\u202egpj.jpg")):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(folder / name)
    (folder / "d\x1b]0;x.jpg").write_bytes(b"\xff\xd8\xff\x1b[2J")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["describe", "photos"], ["jobs"], ["data", "list"], ["run", "classify", "input=猫"]]
)
def test_no_command_fails_on_a_terminal_that_is_not_utf_8(photos: Path, command: list[str]) -> None:
    environment = {
        **os.environ,
        **{"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONPATH": str(Path(cnnbatch.__file__).parents[1])},
    }
    found = subprocess.run(
        [sys.executable, "-m", "cnnbatch", *command],
        cwd=photos.parent,
        env=environment,
        capture_output=True,
    )
    assert found.returncode == (2 if "run" in command else 0)
    text = (found.stdout + found.stderr).decode("ascii")
    assert "Traceback" not in text
    assert not steers(text.replace("\n", ""))
    if command[0] == "describe":
        assert r"d\x1b]0;x.jpg" in text


@pytest.mark.parametrize("text", ["a\x1b[2J", "a\x00", "a\x7f", "a\x9b", "\udcff", "k\x01=v"])
@pytest.mark.parametrize(
    "command",
    [
        "run classify",
        "evaluate",
        "describe",
        "report",
        "compare a",
        "export o --to",
        "models",
        "data fetch",
        "",
    ],
)
def test_an_argument_with_control_characters_is_a_mistake(command: str, text: str) -> None:
    found = CliRunner().invoke(app, [*command.split(), text])
    assert found.exit_code == 2
    assert "text without control characters" in found.stderr or "text in UTF-8" in found.stderr
    assert not steers(found.output.replace("\n", ""))


@pytest.mark.slow
def test_nothing_is_printed_but_by_what_escapes() -> None:
    package = Path(cnnbatch.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"), path
            assert called != "print" or path == package / "terminal" / "__init__.py", path
