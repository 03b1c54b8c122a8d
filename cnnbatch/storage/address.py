"""Addresses as text: one normal form each, so that equal places compare equal; no storage is touched."""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import unquote

from cnnbatch.errors import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]+)://")
_WEB = re.compile(r"(https?)://([^/?#]*)([^?#]*)\??([^#]*)", re.IGNORECASE | re.DOTALL)
_NAMING = ("package", "dataset")  # schemes that name something, and have no slashes behind the colon
_LOCAL = ("file", "local")
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az"}
_SECRET_PREFIXES = ("x-amz-", "x-goog-", "x-ms-", "x-oss-", "x-cos-", "q-", "hdn")
_SIGNATURES = (
    "awsaccesskeyid googleaccessid ossaccesskeyid accesskeyid credential expires hmac key-pair-id policy"
    " security-token sig sign signature"
)
_LOGINS = (
    "access_token api_key apikey auth auth_token authorization code jwt key passwd password pwd secret"
    " session sessionid sid token"
)
_SECRET_NAMES = frozenset(f"{_SIGNATURES} {_LOGINS}".split())
_SHARED_ACCESS = "sv ss srt sr sp se st spr sip si skoid sktid skt ske sks skv saoid suoid scid"
_AZURE_NAMES = frozenset(_SHARED_ACCESS.split())  # secret only beside Azure's own "sig"
_LONG_VALUE = 40  # characters; shorter ones are names and numbers, longer ones mostly tokens


def scheme(uri: str) -> str:
    """Return the lower-case scheme of an address; "" for a local path."""
    kind = uri.partition(":")[0]
    if kind in _NAMING and uri != kind:
        return kind
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def is_local(uri: str) -> bool:
    """Say whether an address names a file of this machine."""
    return scheme(uri) in ("", *_LOCAL)


def normalize(url: str) -> str:
    """Return the one form of an address that everything else works with.

    A path becomes absolute, ``file://`` and ``local://`` a path, ``~`` the home folder; a closing slash
    goes, except in ``http(s)``, where it means something. Whether anything can be there is not asked.
    Raises `UserError` for an empty address.
    """
    if not url.strip() or "\0" in url:
        raise UserError(
            f"an address was expected, such as photos, s3://bucket/photos or https://host/a.jpg; got {url!r}"
        )
    kind = scheme(url)
    if kind == "" and url.startswith("file:"):
        return _path(unquote(url[len("file:") :]))
    if kind in _LOCAL:
        host, slash, path = url[len(kind) + 3 :].partition("/")
        return _path(unquote(slash + path) if kind == "file" else host + slash + path)
    if kind == "":
        return _path(url)
    if kind == "package":
        return "package:" + url.removeprefix("package:").strip("/")
    if kind in ("http", "https"):
        return kind + url[len(kind) :]
    if kind == "dataset":
        return url
    rest = url[len(kind) + 3 :].rstrip("/")
    if kind == "memory":
        rest = rest.lstrip("/")
    return f"{_ALIASES.get(kind, kind)}://{rest}"


def _path(path: str) -> str:
    if not path or "\0" in path:
        raise UserError(f"the path of a file was expected, without null characters; got {path!r}")
    return os.path.abspath(os.path.expanduser(path))


def join(uri: str, *parts: str) -> str:
    """Return the address of ``parts`` below ``uri``."""
    root = uri if uri.endswith("://") else uri.rstrip("/") + "/"
    return root + "/".join(part.strip("/") for part in parts)


def parent(uri: str) -> str:
    """Return the folder that holds ``uri``, without its closing slash; for http without the query."""
    bare = without_query(uri)
    head = scheme(uri)
    start = len(head) + 3 if head not in ("", *_NAMING) else 0
    folder = posixpath.dirname(bare[start:])
    return bare[:start] + folder


def without_query(uri: str) -> str:
    """Return an address without query and fragment, which only ``http(s)`` has: elsewhere they are names."""
    return uri.split("?")[0].split("#")[0] if scheme(uri) in ("http", "https") else uri


def place(uri: str) -> str:
    """Return the bucket or host of an address, with its scheme and without its user; "" for a local path."""
    kind = scheme(uri)
    if kind in ("", *_LOCAL):
        return ""
    if kind in _NAMING:
        return uri.partition("/")[0]
    return f"{kind}://{re.split('[/?#]', uri[len(kind) + 3 :], maxsplit=1)[0].rpartition('@')[2]}"


def redact(uri: str) -> str:
    """Return an address as rows and messages may show it: without user, password and signature.

    A parameter of a query goes when its name is one of a signature or its value is as long as one;
    the others stay, since they may be all that tells one image from another.
    """
    kind = scheme(uri)
    if kind in ("", *_LOCAL, *_NAMING):
        return uri
    if found := _WEB.match(uri):
        place, path, query = found[2].rpartition("@")[2], found[3], _open_query(found[4])
        return f"{kind}://{place}{path}" + (f"?{query}" if query else "")
    start = len(kind) + 3
    place, slash, path = uri[start:].partition("/")
    bare, mark, query = path.rpartition("?")
    if mark and _open_query(query) != query:  # in a bucket a name may hold a question mark of its own
        kept = _open_query(query)
        path = bare + (mark + kept if kept else "")
    return uri[:start] + place.rpartition("@")[2] + slash + path


def _open_query(query: str) -> str:
    items = query.split("&")
    names = _SECRET_NAMES | _AZURE_NAMES if any(_name(item) == "sig" for item in items) else _SECRET_NAMES
    return "&".join(item for item in items if not _is_secret(item, names))


def _is_secret(item: str, names: frozenset[str]) -> bool:
    name = _name(item)
    return name in names or name.startswith(_SECRET_PREFIXES) or len(item) - len(name) > _LONG_VALUE


def _name(item: str) -> str:
    return unquote(item.partition("=")[0]).lower()
