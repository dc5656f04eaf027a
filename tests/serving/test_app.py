"""The addresses of the server, and everything that is refused there, over a run without a model."""

import json
from dataclasses import replace

import pytest
from fake_engine import FACTS, HOSTILE, LIMITS, FakeEngine, neighbor
from starlette.testclient import TestClient

from retro_lab import console
from retro_lab.serving.app import build_app
from retro_lab.serving.worker import Worker

JSON = {"Content-Type": "application/json"}


def test_search_answers_in_the_form_of_massive_serve(client: TestClient, engine: FakeEngine) -> None:
    # The request of massive-serve's own guide, with the name of this corpus.
    answer = client.post("/search", json={"query": "Where was Curie born?", "n_docs": 2, "domains": "corpus"})
    assert answer.status_code == 200
    content = answer.json()
    assert content["query"] == "Where was Curie born?"
    assert (content["n_docs"], content["nprobe"]) == (2, None)
    assert isinstance(content["message"], str)
    results = content["results"]
    assert results.keys() == {"scores", "passages", "IDs"}
    assert results["passages"] == [["Where was Curie born? 0", "Where was Curie born? 1"]]
    assert results["IDs"] == [[[0, 0], [0, 1]]]
    [scores] = results["scores"]
    assert scores == sorted(scores, reverse=True)  # the nearest has the largest
    # And what massive-serve does not tell.
    assert content["neighbors"] == [[vars(neighbor("Where was Curie born?", rank)) for rank in range(2)]]
    assert content["chunks"] == [["Where was Curie born?"]]


@pytest.mark.parametrize("field", ["query", "queries"])  # massive-serve's list, and DS Serve's
def test_several_texts_are_searched_for_at_once(client: TestClient, engine: FakeEngine, field: str) -> None:
    content = client.post("/search", json={field: ["a", "b", "c"], "n_docs": 3, "nprobe": None}).json()
    assert engine.searches == [["a", "b", "c"]]
    assert content["query"] == ["a", "b", "c"]
    assert [[found["text"] for found in neighbors] for neighbors in content["neighbors"]] == [
        [f"{text} {rank}" for rank in range(3)] for text in "abc"
    ]


def test_one_neighbor_is_found_where_nothing_is_said(client: TestClient) -> None:
    assert client.post("/search", json={"query": "a"}).json()["results"]["passages"] == [["a 0"]]


def test_generate_passes_on_what_is_wanted(client: TestClient, engine: FakeEngine) -> None:
    wanted = {"max_tokens": 20, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "seed": 7, "k": 1, "retrieve_every": 8,
              "drafts": True}  # fmt: skip
    content = client.post("/generate", json={"prompt": ["abc", "de"], "stop": "\n", **wanted}).json()
    assert vars(engine.wanted[0]) == {**wanted, "stop": ["\n"]}
    assert [text["text"] for text in content["texts"]] == ["cba", "ed"]
    assert content["model"] == "retro"
    assert content["texts"][0]["finish_reason"] == "end"
    assert content["texts"][0]["tokens"] == 3
    [whole, rest] = content["texts"][0]["stretches"]
    assert whole["neighbors"][0]["document"] == HOSTILE
    assert (whole["prompt"], whole["text"]) == ("abc", "c")
    assert rest == {"prompt": "", "text": f"ba{HOSTILE}", "neighbors": []}


def test_generation_is_greedy_with_the_models_own_neighbors_where_nothing_is_said(
    client: TestClient, engine: FakeEngine
) -> None:
    assert client.post("/generate", json={"prompt": "a"}).status_code == 200
    assert vars(engine.wanted[0]) == {
        "max_tokens": 20, "temperature": 0.0, "top_k": None, "top_p": None, "seed": 0, "stop": [], "k": 2,
        "retrieve_every": None, "drafts": False,
    }  # fmt: skip
    assert client.post("/generate", json={"prompt": "a", "k": 0}).json()["texts"][0]["stretches"][0]["neighbors"] == []


def test_health_has_the_facts_and_the_limits(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", **vars(FACTS), "limits": vars(LIMITS)}


def test_every_answer_has_the_headers_that_keep_other_sites_out(client: TestClient) -> None:
    answers = [client.get("/"), client.get("/nothing"), client.post("/search", json={"query": "poison"})]
    for answer in [*answers, client.get("/health", headers={"Host": "evil.example", "Origin": "http://evil.example"})]:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "default-src 'none'" in answers[0].headers["content-security-policy"]
    assert [answer.status_code for answer in answers] == [200, 404, 500]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]:80", "my.server"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8000",
        "localhost@evil.example",
        "",
        "[::1",
        "127.0.0.1:x",
    ],
)
def test_other_names_are_refused(client: TestClient, engine: FakeEngine, host: str) -> None:
    answer = client.post("/search", json={"query": "a"}, headers={"Host": host})
    assert answer.status_code == 421
    assert "task.allowed_hosts" in answer.json()["error"]
    assert engine.searches == []


def test_a_failure_of_the_run_is_for_the_terminal_and_not_for_clients(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(console, "error", told.append)
    answer = client.post("/search", json={"query": "poison"})
    assert answer.status_code == 500
    assert answer.json().keys() == {"error"}
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "RuntimeError: /secret/path" in told[0]
    assert client.post("/search", json={"query": "a"}).status_code == 200  # and the next one is answered


DEEP = "[" * 100_000
HOSTILE_BODIES = {
    # body: (address, status, what the sentence says)
    "": ("search", 400, "not JSON"),
    "{": ("search", 400, "not JSON"),
    '{"query": "a"} x': ("search", 400, "not JSON"),
    "\ufeff{}": ("search", 400, "not JSON"),
    "[]": ("search", 400, "The body is [];"),
    "null": ("search", 400, "The body is null;"),
    '"query"': ("generate", 400, "The body is"),
    DEEP[:9000]: ("search", 400, "not JSON"),
    f'{{"query": {DEEP[:9000]}': ("generate", 400, "not JSON"),
    "{}": ("search", 400, "query is missing"),
    '{"prompt": null}': ("generate", 400, "prompt=null should be"),
    '{"n_docs": 1}': ("search", 400, "query is missing"),
    '{"query": "a", "queries": ["a"]}': ("search", 400, "one text or a list"),
    '{"query": ""}': ("search", 400, 'query=""'),
    '{"query": []}': ("search", 400, "query has 0 texts"),
    '{"query": ["a", ""]}': ("search", 400, 'query[1]=""'),
    '{"query": ["a", 5]}': ("search", 400, "query[1]=5"),
    '{"queries": [["a"]]}': ("search", 400, 'queries[0]=["a"]'),
    '{"query": 5}': ("search", 400, "query=5"),
    '{"query": {"a": 1}}': ("search", 400, "query="),
    '{"query": "a\\u0000b"}': ("search", 400, "NUL"),
    '{"prompt": "\\u0000"}': ("generate", 400, "NUL"),
    '{"query": "\\ud800"}': ("search", 400, "not JSON"),
    '{"prompt": "a", "stop": "\\udc00x"}': ("generate", 400, "not JSON"),
    '{"query": "a\nb"}': ("search", 400, "not JSON"),
    json.dumps({"query": "x" * 1001}): ("search", 400, "1,001 characters"),
    json.dumps({"query": ["a"] * 5}): ("search", 400, "5 texts"),
    '{"query": "a", "n_docs": 0}': ("search", 400, "n_docs=0"),
    '{"query": "a", "n_docs": -1}': ("search", 400, "n_docs=-1"),
    '{"query": "a", "n_docs": 10}': ("search", 400, "9 neighbors"),
    '{"query": "a", "n_docs": 1.5}': ("search", 400, "n_docs=1.5"),
    '{"query": "a", "n_docs": "1"}': ("search", 400, 'n_docs="1"'),
    '{"query": "a", "n_docs": true}': ("search", 400, "n_docs=true"),
    '{"query": "a", "n_docs": NaN}': ("search", 400, "n_docs=NaN"),
    f'{{"query": "a", "n_docs": {10**400}}}': ("search", 400, "n_docs=1000"),
    f'{{"query": "a", "n_docs": {"9" * 5000}}}': ("search", 400, ""),
    '{"query": "a", "n_docs": 1e400}': ("search", 400, "n_docs="),
    '{"query": "a", "nprobe": 64}': ("search", 400, "nprobe=64 cannot be chosen"),
    '{"query": "a", "domains": "../../etc/passwd"}': ("search", 400, "leave it out to search corpus"),
    '{"query": "a", "path": "/etc/passwd"}': ("search", 400, "path is not a field"),
    '{"query": "a", "__class__": {}}': ("search", 400, "__class__ is not a field"),
    json.dumps({"query": "a", "y" * 2000: 1}): ("search", 400, "y... is not a field"),
    '{"prompt": "a", "model": "x"}': ("generate", 400, "model is not a field"),
    '{"prompt": "a", "max_tokens": 21}': ("generate", 400, "max_tokens=21 is more than 20"),
    '{"prompt": "a", "max_tokens": 0}': ("generate", 400, "max_tokens=0"),
    '{"prompt": "a", "temperature": NaN}': ("generate", 400, "temperature=NaN"),
    '{"prompt": "a", "temperature": Infinity}': ("generate", 400, "temperature=Infinity"),
    '{"prompt": "a", "temperature": 1e999}': ("generate", 400, "temperature="),
    '{"prompt": "a", "temperature": -0.1}': ("generate", 400, "temperature=-0.1"),
    '{"prompt": "a", "top_k": 5}': ("generate", 400, "set a temperature above 0"),
    '{"prompt": "a", "top_p": 0.5, "temperature": 0}': ("generate", 400, "set a temperature above 0"),
    '{"prompt": "a", "top_k": 0}': ("generate", 400, "top_k=0"),
    '{"prompt": "a", "top_p": 0}': ("generate", 400, "top_p=0"),
    '{"prompt": "a", "top_p": 1.1}': ("generate", 400, "top_p=1.1"),
    '{"prompt": "a", "seed": -1}': ("generate", 400, "seed=-1"),
    '{"prompt": "a", "seed": 4294967296}': ("generate", 400, "seed=4294967296"),
    '{"prompt": "a", "k": 10}': ("generate", 400, "k=10"),
    '{"prompt": "a", "k": -1}': ("generate", 400, "k=-1"),
    '{"prompt": "a", "retrieve_every": 9}': ("generate", 400, "8 tokens of a chunk"),
    '{"prompt": "a", "stop": [""]}': ("generate", 400, 'stop=""'),
    '{"prompt": "a", "stop": 5}': ("generate", 400, "stop=5"),
    json.dumps({"prompt": "a", "stop": ["x"] * 17}): ("generate", 400, "17 texts"),
    json.dumps({"prompt": "a", "stop": "x" * 201}): ("generate", 400, "200 characters"),
    json.dumps({"query": "x" * 10_000}): ("search", 413, "10,000 bytes"),
    DEEP: ("generate", 413, "10,000 bytes"),
}


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=lambda body: ascii(body[:40]))
def test_hostile_bodies(client: TestClient, engine: FakeEngine, body: str) -> None:
    address, status, said = HOSTILE_BODIES[body]
    is_refused(client.post(f"/{address}", content=body.encode(), headers=JSON), status, said)
    assert engine.searches == []
    assert engine.wanted == []


@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b'{"query": "\xff"}', b'{"query": "\xed\xa0\x80"}', b"\x00", b"\x1f\x8b"]
)
def test_bytes_that_are_no_text(client: TestClient, body: bytes) -> None:
    is_refused(client.post("/search", content=body, headers=JSON), 400, "not JSON")


def test_a_body_without_a_declared_length_is_not_read_to_its_end(client: TestClient) -> None:
    read = 0

    def endless():
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 1000

    is_refused(client.post("/search", content=endless(), headers=JSON), 413, "task.max_body_bytes")


@pytest.mark.parametrize("declared", ["100000000", "9" * 5000])
def test_a_body_that_declares_itself_too_long_is_not_read(client: TestClient, declared: str) -> None:
    headers = {**JSON, "Content-Length": declared}
    is_refused(client.post("/generate", content=b"{}", headers=headers), 413, "10,000 bytes")


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", "a\xe9"]
)
def test_other_kinds_of_bodies(client: TestClient, kind: str) -> None:
    headers = {"Content-Type": kind.encode("latin-1")}
    is_refused(client.post("/search", content=b'{"query": "a"}', headers=headers), 415, "send application/json")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/search", 405),
        ("PUT", "/generate", 405),
        ("DELETE", "/", 405),
        ("OPTIONS", "/search", 405),  # before a page of another site would send JSON
        ("TRACE", "/health", 405),
        ("BREW", "/health", 405),
        ("POST", "/", 405),
        ("GET", "/nothing", 404),
        ("POST", "/search/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/static/%00", 404),
        ("GET", "/" + "a" * 5000, 404),
        ("GET", "/docs", 404),  # FastAPI's own page would load scripts from elsewhere
        ("GET", "/redoc", 404),
    ],
)
def test_other_methods_and_addresses(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path, headers={"Origin": "http://evil.example"})
    is_refused(answer, status, "POST /search")


def test_openapi_describes_the_bodies(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    body = paths["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "max_tokens", "retrieve_every"} <= body["properties"].keys()
    assert body["additionalProperties"] is False


def test_a_run_without_retrieval_has_no_database_to_search() -> None:
    engine = FakeEngine(replace(FACTS, model="baseline", k=0, database=None, corpus=None, max_neighbors=0))
    worker = Worker(engine, 1)
    client = TestClient(build_app(engine, worker, LIMITS, []), base_url="http://localhost")
    is_refused(client.post("/search", json={"query": "a"}), 409, "retrieves nothing")
    is_refused(client.post("/generate", json={"prompt": "a", "k": 1}), 400, "k=1")
    assert client.post("/generate", json={"prompt": "a"}).json()["texts"][0]["text"] == "a"
    assert "It retrieves nothing." in client.get("/").text
    worker.close()


def is_refused(answer, status: int, said: str) -> None:
    """Check the one sentence of a refusal, of which no client can make the server send a book."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert content.keys() == {"error"}
    sentence = content["error"]
    assert said in sentence
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert len(sentence) < 400
