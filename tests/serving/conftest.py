from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fake_engine import LIMITS, FakeEngine
from starlette.testclient import TestClient

from retro_lab.serving.app import build_app
from retro_lab.serving.worker import Worker


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[TestClient]:
    worker = Worker(engine, LIMITS.max_waiting)
    app = build_app(engine, worker, LIMITS, ["my.server"])
    yield TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False, follow_redirects=False)
    engine.open.set()
    worker.close()
