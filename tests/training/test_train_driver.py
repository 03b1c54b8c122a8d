"""What the driver of a training on Ray says where Ray's processes do not answer; no Ray is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from cnnbatch.errors import EnvironmentFault
from cnnbatch.training import driver

MAILBOX = SimpleNamespace(take=SimpleNamespace(remote=lambda: "an answer to come"))


def test_a_mailbox_that_does_not_answer_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(asked: Any, timeout: float) -> Any:
        raise GetTimeoutError("Get timed out: some object(s) not ready.")

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(EnvironmentFault, match=r"has not answered for 300 s\n.*less busy"):
        driver._taken(MAILBOX, 300.0)


def test_what_a_mailbox_holds_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda asked, timeout: [asked, timeout])
    assert driver._taken(MAILBOX, 60.0) == ["an answer to come", 60.0]
