"""What is answered over HTTP, by a service of this process: no Ray is started."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import cnnbatch
from cnnbatch.config import plugins
from cnnbatch.index.calibrate import Known, calibrate
from cnnbatch.index.search import open_index
from cnnbatch.index.serving.app import build_app
from cnnbatch.index.serving.gate import Limits
from cnnbatch.index.serving.questions import Identify, Photo, Refusal, Search, Verify
from cnnbatch.index.serving.service import InThisProcess, Service, ServiceOptions
from cnnbatch.index.serving.token import Token
from tests.index.serving.served import ANN, BOTH, CODE, built, grow, photo
from tests.tiny_faces import PEOPLE, RED

TOKEN = "a-token-of-sufficient-length"
NO_LIMIT = Limits(per_second=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_given", {*CODE})
        yield built(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[Service]:
    made = Service(ServiceOptions(str(place), refresh_s=3600))
    yield made
    made.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    return asking(service)


def asking(service: Service, limits: Limits = NO_LIMIT, token: Token | None = None) -> TestClient:
    app = build_app(InThisProcess(service), limits, token)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def files(**data: bytes) -> dict[str, tuple[str, bytes]]:
    return {name: (f"{name}.png", one) for name, one in data.items()}


def test_a_photo_finds_what_the_command_finds(client: TestClient, place: Path, tmp_path: Path) -> None:
    answer = client.post("/search?k=3", files=files(photo=BOTH))
    assert answer.status_code == 200
    [found] = answer.json()["photos"]
    assert (found["name"], found["width"], found["height"]) == ("photo.png", 100, 60)
    assert [one["box"] for one in found["queries"]] == [
        {"x1": 5, "y1": 10, "x2": 25, "y2": 30},
        {"x1": 50, "y1": 10, "x2": 80, "y2": 40},
    ]
    (tmp_path / "photo.png").write_bytes(BOTH)
    rows = cnnbatch.open(place).search(str(tmp_path / "photo.png"), 3).to_pylist()
    expected = [[row["id"] for row in rows if row["query"] == number] for number in (0, 1)]
    assert [[match["id"] for match in one["matches"]] for one in found["queries"]] == expected
    first = found["queries"][0]["matches"][0]
    assert first["similarity"] == pytest.approx(rows[0]["similarity"])
    assert (first["probability"], first["same"]) == (None, None)
    assert "is not calibrated" in answer.json()["decision"]["reason"]


def test_a_photo_may_be_the_body(client: TestClient) -> None:
    answer = client.post("/search?k=1", content=ANN, headers={"content-type": "image/png"})
    assert len(answer.json()["photos"][0]["queries"]) == 1


def test_vectors_are_searched_for_as_in_python(client: TestClient, place: Path) -> None:
    vectors = [[1.0, 5.0], [5.0, 1.0]]
    answer = client.post("/search/vectors", json={"vectors": vectors, "k": 2}).json()
    rows = cnnbatch.open(place).search(np.array(vectors), 2).to_pylist()
    found = [match["id"] for one in answer["queries"] for match in one["matches"]]
    assert found == [row["id"] for row in rows]
    chosen = client.post("/search/vectors", json={"vectors": vectors[:1], "where": "key = 'bob/3.png'"})
    assert {one["key"] for one in chosen.json()["queries"][0]["matches"]} == {"bob/3.png"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"vectors": [[1.0, 2.0, 3.0]]}, "expected vectors of 2 numbers"),
        ({"vectors": [[0.0, 0.0]]}, "not all of them zero"),
        ({"vectors": [[1.0, 2.0]], "where": "colour = 'red'"}, "colour"),
        ({"vectors": [[1.0, 2.0]], "where": "key = "}, "where"),
        ({"vectors": [[1.0, 2.0]], "k": 0}, "body.k"),
        ({"vectors": []}, "body.vectors"),
        ({"vectors": "x"}, "body.vectors"),
        ({"vectors": [[1.0, 2.0]], "other": 1}, "body.other"),
    ],
)
def test_what_is_no_search_is_refused(client: TestClient, body: Any, said: str) -> None:
    answer = client.post("/search/vectors", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_one_bad_question_of_a_batch_is_refused_alone(service: Service) -> None:
    good, bad = Search(vectors=((1.0, 5.0),), k=1), Search(vectors=((1.0, 5.0),), where="x = 1")
    photos = (Photo("a.png", ANN), Photo("b.png", BOTH))
    broken = Search(photos=(Photo("no.png", b"no picture"),))
    found = service.answers([bad, good, Verify(photos), broken, Identify(photos[:1])])
    assert [isinstance(one, Refusal) for one in found] == [True, False, False, True, False]
    alone = [service.answers([one])[0] for one in (good, Verify(photos), Identify(photos[:1]))]
    assert [found[1], found[2], found[4]] == alone


@pytest.mark.slow
def test_calibrated_matches_have_probabilities_and_decisions(tmp_path: Path) -> None:
    from tests import tiny_faces

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_given", {*CODE})
        place = built(tmp_path)
        absent = tiny_faces.write(
            tmp_path / "absent", {f"cat/{one}.png": [("cat", one, 10, 15)] for one in range(12)}
        )
        calibrate(open_index(str(place)), Known(people="folder", absent=str(absent)))
        service = Service(ServiceOptions(str(place), refresh_s=3600))
        client = asking(service)
        found = client.post("/search?k=60&rate=0.1", files=files(photo=ANN)).json()
        least = found["decision"]["threshold"]
        for match in found["photos"][0]["queries"][0]["matches"]:
            assert match["same"] is (match["similarity"] >= least)
            assert 0 <= match["probability"] <= 1
        same = client.post("/verify?rate=0.01", files=files(first=ANN, second=BOTH)).json()
        assert same["same"] is True
        assert same["second"] == {
            "photo": "second.png",
            "faces": 2,
            "box": {"x1": 50, "y1": 10, "x2": 80, "y2": 40},
        }
        undecided = client.post("/verify", files=files(first=ANN, second=BOTH)).json()
        assert undecided["same"] is None
        assert "1,000 are needed" in undecided["reason"]
        named = client.post("/identify?rate=0.1", files=files(photo=BOTH)).json()
        assert [face["person"] for face in named["photos"][0]["faces"]] == ["bob", "ann"]
        service.close()


def test_photos_without_a_face_or_without_a_picture_are_told_apart(client: TestClient) -> None:
    [empty] = client.post("/search", files=files(photo=photo())).json()["photos"]
    assert (empty["queries"], empty["reason"], empty["error"]) == ([], "no face was found", None)
    both = [("photo", ("no.png", b"text")), ("photo", ("ann.png", ANN))]
    first, second = client.post("/search", files=both).json()["photos"]
    assert (first["error"]["code"], len(second["queries"])) == ("undecodable", 1)
    alone = client.post("/identify", files=files(photo=b"text"))
    assert alone.status_code == 422
    assert "photo.png" in alone.json()["detail"]
    one = client.post("/verify", files=files(first=ANN, second=photo()))
    assert (one.status_code, "no face was found in second.png" in one.json()["detail"]) == (422, True)
    assert client.post("/verify", files=files(first=ANN)).status_code == 422
    assert client.post("/search").status_code == 422


def test_an_image_bomb_is_refused(client: TestClient) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    answer = client.post("/search", files=files(photo=bomb))
    assert (answer.status_code, "pixels" in answer.json()["detail"]) == (422, True), answer.text


def test_pictures_are_crops_of_what_the_index_names_and_nothing_else(client: TestClient, place: Path) -> None:
    [found] = client.post("/search?k=1", files=files(photo=ANN)).json()["photos"]
    answer = client.get(f"/{found['queries'][0]['matches'][0]['picture']}")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as shown:
        pixels = np.asarray(shown).astype(int)
    centre = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
    assert np.abs(centre - (RED, *PEOPLE["ann"])).max() < 12
    for path in ("/etc/passwd", "../ann/0.png", str(place.parent / "photos/ann/0.png"), "ann/0.png"):
        assert client.get("/picture", params={"id": path}).status_code == 404
    other = client.get("/picture", params={"id": "ann/0.png#0", "output": "/elsewhere"})
    assert other.status_code == 404


def test_a_request_that_is_too_large_is_refused_before_it_is_read(service: Service) -> None:
    client = asking(service, Limits(request_bytes=50_000, per_second=0))
    answer = client.post("/search", content=bytes(60_000))
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("expected a request of at most 50 kB, got 60 kB")
    chunks = client.post("/search", content=(bytes(10_000) for _ in range(6)))
    assert (chunks.status_code, "got more than 60 kB" in chunks.json()["detail"]) == (413, True)
    assert client.post("/search?k=1", content=ANN).status_code == 200
    for length in ("9" * 5_000, "-1", "x"):
        answer = client.post("/search", content=b"", headers={"content-length": length})
        assert answer.status_code == 400


def test_a_client_that_asks_too_often_is_told_when_to_ask_again(service: Service) -> None:
    client = asking(service, Limits(per_second=0.5))
    answers = [client.get("/index") for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 429, 429]
    assert 1 <= int(answers[1].headers["retry-after"]) <= 2
    assert client.get("/healthz").status_code == 200


def test_a_token_is_required_where_there_is_one(service: Service) -> None:
    client = asking(service, token=Token.of(TOKEN, "test"))
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for path in ("/index", "/metrics", "/picture?id=ann/0.png%230"):
            answer = client.get(path, headers=header)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/search", content=ANN, headers=header).status_code == 401
    assert client.get("/index", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for path in ("/", "/page.js", "/page.css", "/docs", "/openapi.json", "/healthz"):
        assert client.get(path).status_code == 200


def test_without_a_token_another_name_of_this_machine_is_refused(client: TestClient) -> None:
    assert client.get("/index", headers={"Host": "evil.example:8000"}).status_code == 421
    for name in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/index", headers={"Host": name}).status_code == 200


def test_the_openapi_document_and_page_name_every_question(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/search", "/search/vectors", "/verify", "/identify", "/picture", "/index"} <= {*paths}
    page = client.get("/docs").text
    assert "POST /identify" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "multipart/form-data" in json.dumps(paths["/verify"])


def test_metrics_count_requests_and_say_what_the_index_is(service: Service) -> None:
    client = asking(service)
    client.get("/index")
    client.get("/nothing")
    text = client.get("/metrics").text
    assert 'cnnbatch_requests_total{path="/index",status="200"} 1.0' in text
    assert 'cnnbatch_requests_total{path="other",status="404"} 1.0' in text
    assert "cnnbatch_index_embeddings 48.0" in text
    assert 'cnnbatch_request_seconds_bucket{le="+Inf",path="/index"} 1.0' in text


@pytest.mark.slow
def test_a_newer_state_is_taken_over_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_given", {*CODE})
        place = built(tmp_path)
        service = Service(ServiceOptions(str(place), refresh_s=3600))
        client = asking(service)
        cat = files(photo=photo(("cat", 10, 10, 24)))
        before = client.post("/search?k=1", files=cat).json()
        assert before["index"]["embeddings"] == 48
        grow(tmp_path)
        assert service.live.refresh()
        after = client.post("/search?k=1", files=cat).json()
        assert after["index"]["embeddings"] == 49
        assert after["index"]["state"] > before["index"]["state"]
        assert after["photos"][0]["queries"][0]["matches"][0]["id"] == "cat/0.png#0"
        assert not service.live.refresh()
        (place / "manifest.json").write_text("damaged")
        assert not service.live.refresh()
        assert client.post("/search?k=1", files=cat).json()["index"] == after["index"]
        assert "cnnbatch_index_refresh_failed 1.0" in client.get("/metrics").text
        service.close()
