"""`cnnbatch serve` as a person starts it: on Ray Serve, with a token, stopped by Ctrl-C; what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.index.serving.gate import Limits
from cnnbatch.index.serving.rate_limit import RateLimit
from cnnbatch.index.serving.token import Token, is_loopback, required_token
from tests.index.serving.served import ANN, BOTH, CODE, built, grow
from tests.places import CHECKOUT

TOKEN = "a-token-of-sufficient-length"
START_S, STOP_S = 180.0, 40.0


class Server:
    """A process of `cnnbatch serve`."""

    def __init__(self, place: Path) -> None:
        words = ["serve", str(place), "--port", "0", "--refresh-s", "0.2", "--requests-per-second", "0"]
        given = [word for code in CODE for word in ("--plugin", code)]
        variables = {"PYTHONPATH": str(CHECKOUT), "RAY_ADDRESS": "local", "CNNBATCH_TOKEN": TOKEN}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cnnbatch", *words, *given],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        timer = threading.Timer(START_S, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"answering at http://127\.0\.0\.1:(\d+) ", line):
                self.port = int(found[1])
                break
        timer.cancel()
        assert hasattr(self, "port"), self.said

    def ask(self, method: str, path: str, body: bytes | None = None, token: str = TOKEN) -> tuple[int, Any]:
        """Return the status and the JSON of an answer, or its text."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if text.startswith("{") else text

    def stop(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=STOP_S)
        self.said += said
        return self.process.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_given", {*CODE})
        made = tmp_path_factory.mktemp("server")
        built(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    made = Server(folder / "index")
    yield made
    if made.process.poll() is None:
        os.killpg(made.process.pid, signal.SIGKILL)
        made.process.communicate()


@pytest.mark.slow
def test_replicas_answer_many_clients_at_once_as_one_by_one(server: Server) -> None:
    photos = [ANN, BOTH] * 8
    alone = [server.ask("POST", "/search?k=3", one) for one in photos[:2]]
    assert [status for status, _ in alone] == [200, 200]
    with ThreadPoolExecutor(16) as pool:
        together = [*pool.map(lambda one: server.ask("POST", "/search?k=3", one), photos)]
    assert together == alone * 8


@pytest.mark.slow
def test_the_token_opens_the_server_and_is_never_printed(server: Server) -> None:
    assert server.ask("GET", "/index", token="wrong")[0] == 401
    assert server.ask("GET", "/index")[0] == 200
    assert server.ask("GET", "/healthz", token="")[:2] == (200, "ok\n")
    assert TOKEN not in server.said


@pytest.mark.slow
def test_fifty_megabytes_are_refused_and_the_client_is_told(server: Server) -> None:
    status, answer = server.ask("POST", "/search", bytes(50_000_000))
    assert (status, "at most 20 MB, got 50 MB" in answer["detail"]) == (413, True)


@pytest.mark.slow
def test_a_newer_state_is_answered_from_without_a_restart(server: Server, folder: Path) -> None:
    state = server.ask("GET", "/index")[1]["index"]["state"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_given", {*CODE})
        grow(folder)
    waited = threading.Event()
    for _ in range(300):
        found = server.ask("GET", "/index")[1]["index"]
        if found["state"] > state:
            break
        waited.wait(0.1)
    assert found["embeddings"] == 49


@pytest.mark.slow
def test_ctrl_c_stops_it_with_its_status(server: Server) -> None:
    assert server.stop() == 130
    assert "Stopped." in server.said
    assert "Traceback" not in server.said


def ask(*words: str, variables: Mapping[str, str] | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["serve", *words], env={"CNNBATCH_TOKEN": None, **(variables or {})})
    return done.exit_code, done.output


def test_others_need_a_token(folder: Path) -> None:
    status, said = ask(str(folder / "index"), "--host", "0.0.0.0")
    assert (status, "--host 0.0.0.0: expected a token" in said) == (2, True)
    status, said = ask(str(folder / "index"), variables={"CNNBATCH_TOKEN": "short"})
    assert (status, "at least 16" in said, "short" not in said) == (2, True, True)


def test_a_place_that_is_taken_or_no_index_is_said_at_once(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, said = ask(str(folder / "index"), "--port", str(taken.getsockname()[1]))
    assert (status, "nothing can listen there" in said) == (2, True), said
    status, said = ask(str(tmp_path), "--port", "0")
    assert (status, "expected an index" in said) == (2, True), said


def test_without_the_extra_the_command_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnbatch.cli import serve

    monkeypatch.setattr(serve, "NEEDED", ("no_such_package",))
    status, said = ask(str(folder / "index"))
    assert (status, "pip install 'cnnbatch[serve]'" in said) == (2, True)


def test_a_token_comes_from_a_file_or_the_environment_which_children_do_not_see(tmp_path: Path) -> None:
    environment = {"CNNBATCH_TOKEN": TOKEN}
    found = required_token("0.0.0.0", None, environment)
    assert found is not None
    assert environment == {}
    assert found.opens(f"Bearer {TOKEN}")
    assert found.opens(f"bearer {TOKEN} ")
    for header in ("", TOKEN, f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer "):
        assert not found.opens(header)
    assert TOKEN not in repr(found)
    (tmp_path / "token").write_text("of-a-file-and-long-enough\n")
    found = required_token("0.0.0.0", str(tmp_path / "token"), {})
    assert found is not None
    assert found.opens("Bearer of-a-file-and-long-enough")
    with pytest.raises(UserError, match="it can't be read"):
        required_token("127.0.0.1", str(tmp_path / "none"), {})
    with pytest.raises(UserError, match="at least 16"):
        Token.of("with blanks in the midst", "test")
    assert required_token("localhost", None, {}) is None


def test_which_hosts_are_this_machine_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "", "127.0.0.1.example"))
    )


def test_a_client_has_a_burst_and_then_its_rate() -> None:
    now = [0.0]
    limit = RateLimit(2.0, lambda: now[0])
    assert [limit.wait_s("10.0.0.1") for _ in range(8)] == [0] * 6 + [0.5] * 2
    assert limit.wait_s("10.0.0.2") == 0
    now[0] = 0.5
    assert [limit.wait_s("10.0.0.1") for _ in range(2)] == [0, 0.5]
    now[0] = 100.0
    assert [limit.wait_s("10.0.0.1", 0.1) for _ in range(61)] == [0] * 60 + [pytest.approx(0.05)]
    assert RateLimit(0).wait_s("10.0.0.1") == 0


def test_addresses_of_one_network_of_ipv6_are_one_client() -> None:
    limit = RateLimit(0.1, lambda: 0.0)
    assert limit.wait_s("2001:db8::1") == 0
    assert limit.wait_s("2001:db8::2") > 0
    assert limit.wait_s("2001:db8:0:1::1") == 0


def test_a_request_can_always_be_held() -> None:
    assert Limits().request_bytes <= Limits().held_bytes
