"""How `make` finds a Python and makes the environment; pretended Pythons, so nothing is downloaded."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lock_wheels import loose
from tests.places import CHECKOUT

TOOLS = ("awk", "cat", "cp", "mkdir", "rm", "sh", "touch", "tr", "uname")
MAKE = shutil.which("make")

# Answers `-c` (supported? has ensurepip?), `-m venv FOLDER` and `-m pip`, and notes what it was asked.
PRETENDED = """\
#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
    *ensurepip*) exit {bare} ;;
    "-m venv"*) mkdir -p "$3/bin" && cp "{python}" "$3/bin/python" ;;
    "-m pip"*) exit $(cat "{status}") ;;
    *) exit {old} ;;
esac
"""

pytestmark = pytest.mark.skipif(MAKE is None, reason="GNU make is not installed")


class Machine:
    """A folder with the Makefile, and a PATH with nothing but a few tools and pretended Pythons."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.log = folder, folder / "bin", folder / "log"
        self.path.mkdir()
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, folder / name)
        for tool in TOOLS:
            (self.path / tool).symlink_to(str(shutil.which(tool)))
        self.pip_status(0)

    def pip_status(self, status: int) -> None:
        (self.folder / "status").write_text(str(status))

    def add_python(self, name: str, *, old: bool = False, bare: bool = False) -> None:
        python = self.path / name
        values = {"log": self.log, "python": python, "status": self.folder / "status"}
        python.write_text(PRETENDED.format(**values, old=int(old), bare=int(bare)))
        python.chmod(0o755)

    def make(self, *arguments: str) -> tuple[int, str, list[str]]:
        """Return the exit status, what was said, and what the Pythons were asked to do."""
        self.log.write_text("")
        command = [str(MAKE), *(arguments or [".venv/.installed"])]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={"PATH": str(self.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        asked = [line for line in self.log.read_text().splitlines() if line.startswith("-m")]
        return done.returncode, done.stdout + done.stderr, asked


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    "name", ["python3.14", "python3.13", "python3.12", "python3.11", "python3", "python"]
)
def test_a_python_is_found_under_each_usual_name(machine: Machine, name: str) -> None:
    machine.add_python(name)
    status, said, asked = machine.make()
    assert status == 0, said
    assert asked[0] == "-m venv .venv"
    assert "--no-deps --require-hashes -r requirements.lock" in asked[1]
    assert asked[2].endswith("-e .")
    assert "GB" in said


def test_an_unsupported_python_is_passed_over(machine: Machine) -> None:
    machine.add_python("python3", old=True)
    machine.add_python("python")
    assert machine.make()[0] == 0


def test_without_a_python_it_says_what_was_looked_for(machine: Machine) -> None:
    machine.add_python("python3", old=True)
    status, said, asked = machine.make()
    assert (status, asked) == (2, [])
    assert "expected Python 3.11 to 3.14" in said
    assert "PYTHON=/path" in said


def test_without_ensurepip_it_says_what_to_install(machine: Machine) -> None:
    machine.add_python("python3.12", bare=True)
    status, said, asked = machine.make()
    assert (status, asked) == (2, [])
    assert "apt install python3.12-venv" in said


def test_a_python_can_be_named(machine: Machine) -> None:
    machine.add_python("mine")
    assert machine.make(".venv/.installed", f"PYTHON={machine.path / 'mine'}")[0] == 0


def test_a_second_call_does_nothing(machine: Machine) -> None:
    machine.add_python("python3")
    machine.make()
    status, _, asked = machine.make()
    assert (status, asked) == (0, [])


def test_an_interrupted_installation_is_made_anew(machine: Machine) -> None:
    machine.add_python("python3")
    machine.pip_status(1)
    assert machine.make()[0] == 2
    leftover = machine.folder / ".venv" / "half"
    leftover.touch()
    machine.pip_status(0)
    status, _, asked = machine.make()
    assert (status, asked[0], leftover.exists()) == (0, "-m venv .venv", False)


def test_an_environment_without_a_python_is_made_anew(machine: Machine) -> None:
    machine.add_python("python3")
    (machine.folder / ".venv").mkdir()
    status, _, asked = machine.make()
    assert (status, asked[0]) == (0, "-m venv .venv")


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_changed_lock_is_installed_over_the_old_one(machine: Machine, name: str) -> None:
    machine.add_python("python3")
    machine.make()
    stamp = (machine.folder / ".venv" / ".installed").stat().st_mtime
    os.utime(machine.folder / name, (stamp + 5, stamp + 5))
    status, _, asked = machine.make()
    assert status == 0
    assert [entry.startswith("-m pip") for entry in asked] == [True, True]


def test_help_lists_every_target(machine: Machine) -> None:
    _, said, _ = machine.make("help")
    for target in (
        "demo",
        "test",
        "check",
        "lock",
        "bench",
        "test-long",
        "test-quick",
        "test-gpu",
        "bench-gpu",
        "help",
        "clean",
    ):
        assert f"make {target} " in said


def test_the_lock_holds_versions_with_hashes_and_no_addresses() -> None:
    assert loose((CHECKOUT / "requirements.lock").read_text(encoding="utf-8")) == []
