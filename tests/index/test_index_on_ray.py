"""Segments made by tasks of a Ray cluster are those that local processes make."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters import cluster_of
from tests.embedded import build, people, write_pictures
from tests.index.test_index_build import manifest, segment_files


@pytest.mark.slow
def test_a_cluster_makes_the_same_segments(tmp_path: Path) -> None:
    vectors = people(900)
    write_pictures(tmp_path / "out", vectors[:800])
    build(tmp_path / "out", tmp_path / "here", compute={"pool": "local", "workers": 2})
    with cluster_of({"num_cpus": 2, "object_store_memory": 10**8}):
        on_ray = {"pool": "ray", "workers": 2}
        build(tmp_path / "out", tmp_path / "ray", compute=on_ray)
        assert segment_files(tmp_path / "ray") == segment_files(tmp_path / "here")
        assert manifest(tmp_path / "ray").recall == manifest(tmp_path / "here").recall
        write_pictures(tmp_path / "more", vectors[800:], name="m")
        assert build(tmp_path / "more", tmp_path / "ray", compute=on_ray).images == 100
    build(tmp_path / "more", tmp_path / "here")
    assert segment_files(tmp_path / "ray") == segment_files(tmp_path / "here")
