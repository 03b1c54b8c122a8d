"""Fixtures of storage: S3 by moto's server, and a web server that answers what a test tells it.

A test module takes them with ``pytest_plugins = ("tests.s3",)``; the classes are in `tests.servers`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cnnbatch.storage import StorageOptions
from tests.servers import Bucket, WebServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials that any stub takes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def bucket(s3_endpoint: str, aws_keys: None) -> Bucket:
    name = f"bucket-{next(_numbers)}"
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=name)
    options = StorageOptions(endpoint=s3_endpoint, region="us-east-1", timeout_s=10, retries=1)
    return Bucket(f"s3://{name}", name, options, client)


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.stop()
