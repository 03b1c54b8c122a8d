from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import UserError
from cnnbatch.storage import is_local, join, normalize, parent, redact


def test_normal_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    forms = {
        "photos": f"{tmp_path}/photos",
        "./photos/../x/": f"{tmp_path}/x",
        "~/photos": "/home/me/photos",
        "file:///a/b%20c": "/a/b c",
        "s3://b/k/": "s3://b/k",
        "S3://b": "s3://b",
        "s3a://b/k": "s3://b/k",
        "gcs://b/k": "gs://b/k",
        "memory:///a/b/": "memory://a/b",
        "http://h/a/?x=y": "http://h/a/?x=y",
        "package:skimage/data/": "package:skimage/data",
        "photos/**/*.jpg": f"{tmp_path}/photos/**/*.jpg",
    }
    assert {url: normalize(url) for url in forms} == forms
    assert [normalize(form) for form in forms.values()] == list(forms.values())
    for nothing in ("", "  ", "a\0b"):
        with pytest.raises(UserError):
            normalize(nothing)


def test_join_and_parent() -> None:
    assert join("/a", "b", "c.jpg") == "/a/b/c.jpg"
    assert join("/", "b") == "/b"
    assert join("s3://b", "c/d") == "s3://b/c/d"
    assert join("memory://", "a") == "memory://a"
    assert [parent(uri) for uri in ("/a/b", "s3://b/c/d", "s3://b/c", "http://h/a/b?x=/y")] == [
        "/a",
        "s3://b/c",
        "s3://b",
        "http://h/a",
    ]
    assert [is_local(uri) for uri in ("/a", "file:///a", "s3://b", "package:a/b", "memory://a")] == [
        True,
        True,
        False,
        False,
        False,
    ]


SIGNED = {
    "https://me:pw@h/a.jpg?X-Amz-Signature=S&X-Amz-Credential=S&id=7#f": "https://h/a.jpg?id=7",
    "https://h/a.jpg?sv=2024&st=S&se=S&sr=b&sp=r&sig=S": "https://h/a.jpg",
    "https://h/a.jpg?GoogleAccessId=S&Expires=1&Signature=S": "https://h/a.jpg",
    "https://h/a.jpg?Policy=S&Signature=S&Key-Pair-Id=S": "https://h/a.jpg",
    "https://h/a.jpg?unknown=" + "S" * 40: "https://h/a.jpg",
    "https://h/a.jpg?w=100&sr=2": "https://h/a.jpg?w=100&sr=2",
    "az://c/a.jpg?sv=2024&sig=S": "az://c/a.jpg",
    "s3://key:S@b/a.jpg": "s3://b/a.jpg",
    "s3://b/what?.jpg": "s3://b/what?.jpg",
    "/local/what?sig=x.jpg": "/local/what?sig=x.jpg",
}


@pytest.mark.parametrize("uri", SIGNED)
def test_signatures_are_not_shown(uri: str) -> None:
    assert redact(uri) == SIGNED[uri]
    assert redact(redact(uri)) == redact(uri)


@given(
    st.text(st.characters(categories=["L", "N"]), min_size=5),
    st.sampled_from(["sig", "X-Amz-Signature", "TOKEN"]),
)
def test_no_signature_is_shown(secret: str, name: str) -> None:
    uri = f"https://user:{secret}@host/a.jpg?a=1&{name}={secret}&b=2"
    assert redact(uri) == "https://host/a.jpg?a=1&b=2"
