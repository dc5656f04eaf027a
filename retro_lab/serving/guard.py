"""What stands before the application: which host names are answered to, and what browsers may do with an answer.

A page of another site cannot read answers, as nothing allows other origins, and cannot send requests that are answered,
as they must be JSON. A name of another site that was made to point at this machine (DNS rebinding) is refused.
"""

import json
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names by which a machine calls itself."""
ALL_NAMES = "*"
HOST = re.compile(r"(\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:\d{1,5})?", re.IGNORECASE)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Answers requests to known host names alone, and adds headers to each answer."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        """Guard `app`, which is reached by its loopback names and `names`; `*` stands for any."""
        self._app = app
        self._names = {name.lower() for name in (*LOOPBACK, *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        given = Headers(scope=scope).getlist("host")
        if ALL_NAMES in self._names or (len(given) == 1 and _name(given[0]) in self._names):
            await self._app(scope, receive, with_headers)
            return
        shown = ascii(given[0][:60]) if given else "none"
        sentence = f"Host {shown} is not a name of this server; use 127.0.0.1, or add the name to task.allowed_hosts."
        body = json.dumps({"error": sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await with_headers({"type": "http.response.start", "status": 421, "headers": headers})
        await with_headers({"type": "http.response.body", "body": body})


def _name(host: str) -> str | None:
    """Return the name in a Host header, without a port; None if it has not the form of one."""
    found = HOST.fullmatch(host)
    return (found["six"] or found["name"]).lower() if found else None
