"""Requests at the same time: they wait for their turn, searches together, and each gets its own answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from fake_engine import LIMITS, FakeEngine
from starlette.testclient import TestClient

from retro_lab.serving.refusals import RefusedError
from retro_lab.serving.worker import TOGETHER, Worker


async def busy(engine: FakeEngine, worker: Worker) -> asyncio.Task:
    """Keep the thread at a first search."""
    engine.open.clear()
    first = asyncio.create_task(worker.search(["first"], 1))
    assert await asyncio.to_thread(engine.begun.acquire, timeout=30)
    return first


def test_searches_that_wait_are_made_together_and_each_gets_its_own_k(engine: FakeEngine) -> None:
    async def ask() -> list:
        worker = Worker(engine, 8)
        first = await busy(engine, worker)
        others = [asyncio.create_task(worker.search([f"text {k}", "other"], k)) for k in (3, 1, 2)]
        await asyncio.sleep(0)
        engine.open.set()
        found = await asyncio.gather(first, *others)
        worker.close()
        return found

    _, *found = asyncio.run(ask())
    assert engine.searches == [["first"], ["text 3", "other", "text 1", "other", "text 2", "other"]]
    for k, [own, other] in zip((3, 1, 2), found, strict=True):
        assert [neighbor.text for neighbor in own.neighbors] == [f"text {k} {rank}" for rank in range(k)]
        assert len(other.neighbors) == k


def test_a_search_that_fails_fails_for_its_own_client_alone(engine: FakeEngine) -> None:
    async def ask() -> list:
        worker = Worker(engine, 8)
        first = await busy(engine, worker)
        others = [asyncio.create_task(worker.search([text], 1)) for text in ("a", "poison", "b")]
        await asyncio.sleep(0)
        engine.open.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        worker.close()
        return found

    _, a, poison, b = asyncio.run(ask())
    assert isinstance(poison, RuntimeError)
    assert a[0].neighbors[0].text == "a 0"
    assert b[0].neighbors[0].text == "b 0"


def test_a_batch_of_searches_is_bounded(engine: FakeEngine) -> None:
    async def ask() -> None:
        worker = Worker(engine, 8)
        first = await busy(engine, worker)
        others = [asyncio.create_task(worker.search(["a"] * (TOGETHER // 2), 1)) for _ in range(3)]
        await asyncio.sleep(0)
        engine.open.set()
        await asyncio.gather(first, *others)
        worker.close()

    asyncio.run(ask())
    assert [len(texts) for texts in engine.searches] == [1, TOGETHER, TOGETHER // 2]


def test_a_client_that_left_takes_no_time(engine: FakeEngine) -> None:
    async def ask() -> None:
        worker = Worker(engine, 8)
        first = await busy(engine, worker)
        gone, stays = (asyncio.create_task(worker.search([text], 1)) for text in ("gone", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        engine.open.set()
        await asyncio.gather(first, stays)
        worker.close()

    asyncio.run(ask())
    assert engine.searches == [["first"], ["stays"]]


def test_closing_answers_all_that_wait(engine: FakeEngine) -> None:
    async def ask() -> list:
        worker = Worker(engine, 8)
        first = await busy(engine, worker)
        waiting = asyncio.create_task(worker.search(["waiting"], 1))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(worker.close))
        found = await asyncio.gather(waiting, return_exceptions=True)
        engine.open.set()
        await closing
        with pytest.raises(RefusedError, match="stopping"):
            await worker.search(["late"], 1)
        return [*found, await first]

    refused, first = asyncio.run(ask())
    assert isinstance(refused, RefusedError)
    assert refused.status == 503
    assert first[0].neighbors[0].text == "first 0"
    assert engine.searches == [["first"]]


def test_one_request_too_many_is_told_to_come_back(client: TestClient, engine: FakeEngine) -> None:
    engine.open.clear()
    most = LIMITS.max_waiting
    with ThreadPoolExecutor(most + 2) as clients:
        first = clients.submit(client.post, "/generate", json={"prompt": "a"})
        assert engine.begun.acquire(timeout=30)
        # Which of them is the one too many, they settle among themselves.
        others = [clients.submit(client.post, "/search", json={"query": "a"}) for _ in range(most + 1)]
        refused = next(as_completed(others)).result()
        engine.open.set()
        codes = sorted(answer.result().status_code for answer in others)
        assert first.result().status_code == 200
    assert codes == [200] * most + [503]
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "task.max_waiting" in refused.json()["error"]


def test_many_requests_of_many_clients_each_get_their_own_answer(client: TestClient, engine: FakeEngine) -> None:
    def ask(number: int) -> tuple[int, str]:
        if number % 3:
            answer = client.post("/search", json={"query": f"text {number}"})
            return answer.status_code, answer.json()["results"]["passages"][0][0]
        answer = client.post("/generate", json={"prompt": f"text {number}"})
        return answer.status_code, answer.json()["texts"][0]["text"]

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, range(200)))
    expected = [f"text {number} 0" if number % 3 else f"text {number}"[::-1] for number in range(200)]
    assert answers == [(200, text) for text in expected]
