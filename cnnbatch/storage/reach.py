"""How far a list may reach: one that was read from the web or a bucket names no place of its reader's own.

Such a list may be anybody's, and its reader has rights that its author has not: files, a network behind a
firewall, the credentials of a bucket or of the machine itself. Addresses are judged by their text; web
addresses once more by the machine that a connection goes to, when it is made, so that no name, and no
redirect, leads elsewhere between the question and the answer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from cnnbatch.storage.address import parent, place, redact, scheme

Allowed = Literal["local", "private", "buckets"]
"""What ``input.allow`` may name."""

_PERSONS = ("", "file", "local", "package", "dataset", "memory")  # nobody else can have put a list there
_BUCKETS = ("s3", "gs", "az", "abfs", "abfss", "adl", "hf", "oss", "oci", "r2", "gdrive", "dropbox", "box")
_REMOTE = ("ftp", "sftp", "ssh", "smb", "webdav", "webhdfs", "hdfs", "github", "gist", "lakefs")
_WEB = ("http", "https")
_SHARED = {*_BUCKETS, *_REMOTE} - {"s3", "gs", "az"}  # their first part does not tell whose something is
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SPECIAL = ipaddress.ip_network("192.0.0.0/24")  # for protocols; Python's own table differs by version
_OF_THE_CLOUD = frozenset({"168.63.129.16"})  # Azure's own agent; the other metadata services are link-local
_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Reach:
    """What the list at the address ``owner`` may name: its own bucket or host, the public web, and ``allow``.

    ``private_home``: the list itself came from a machine that is not public, so its own host need not be.
    """

    owner: str
    allow: frozenset[Allowed] = frozenset()
    private_home: bool = False

    def refusal(self, uri: str) -> str | None:
        """Return why an address may not be read, by its text alone; None where it may."""
        kind, needed = scheme(uri), self.lacks(uri)
        if needed is None:
            return None
        what = {
            "local": "names a file of this machine",
            "buckets": f"names another {'storage' if kind not in ('s3', 'gs', 'az') else 'bucket'}",
            "private": f"is an address of {kind}://",
        }[needed]
        return self._words(uri, what, needed)

    def lacks(self, uri: str) -> Allowed | None:
        """Return what is not allowed and has to be for an address, by its text; None where it may be read."""
        needed = _needed(uri)
        if needed is None or needed in self.allow or (needed != "local" and self._is_own(uri)):
            return None
        return needed

    def lets_connect(self, uri: str, address: str) -> bool:
        """Say whether a web address may lead to the machine with this IP address."""
        if "private" in self.allow or is_public(address):
            return True
        link_local = ipaddress.ip_address(address.partition("%")[0]).is_link_local
        return self.private_home and self._is_own(uri) and not link_local

    def refusal_to_connect(self, uri: str) -> str:
        """Return why a web address was not followed to where it leads."""
        return self._words(uri, "leads to a machine of a private network, or to this one", "private")

    def _is_own(self, uri: str) -> bool:
        if scheme(uri) in _SHARED:
            return uri.startswith(parent(self.owner) + "/")
        return origin(uri) == origin(self.owner)

    def _words(self, uri: str, what: str, needed: Allowed) -> str:
        return (
            f"{redact(uri)} {what}, and the list {redact(self.owner)} comes from elsewhere; "
            f"where it is to be trusted, give input.allow=[{needed}]"
        )


def may_name_anything(url: str) -> bool:
    """Say whether a list lies where only the person who runs the job, or this machine, can have put it."""
    return scheme(url) in _PERSONS and not (scheme(url) == "memory" and "::" in url)  # a chain, as below


def reach_of(url: str, allow: Collection[Allowed], private_home: bool = False) -> Reach | None:
    """Return how far the list at ``url`` may reach; None where it may name anything."""
    return None if may_name_anything(url) else Reach(url, frozenset(allow), private_home)


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet, and no cloud's service for its machines."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    special = ip.is_multicast or ip in _SPECIAL or str(ip) in _OF_THE_CLOUD
    return ip.is_global and not special


def _needed(uri: str) -> Allowed | None:
    """Return what has to be allowed for an address that is not the list's own; None for one of the web."""
    kind = scheme(uri)
    if "::" in uri.partition("?")[0] and kind not in (*_WEB, "s3", "gs", "az"):
        return "local"  # fsspec chains file systems with it, one of which may be of this machine
    if kind in _WEB:
        return None
    if kind in _BUCKETS:
        return "buckets"
    return "private" if kind in _REMOTE else "local"


def origin(uri: str) -> str:
    """Return bucket or host with port; the web's two usual ports are one."""
    found = place(uri).lower()
    kind, _, host = found.partition("://")
    if kind not in _WEB:
        return found
    name, colon, port = host.rpartition(":")
    if colon and port == _PORTS[kind]:
        host = name
    return f"web://{host}"
