"""The server itself: an address of this machine, and uvicorn until a signal asks it to stop."""

import errno
import socket
from contextlib import suppress

import uvicorn

from retro_lab.errors import ConfigurationError, PreemptedError
from retro_lab.serving.guard import Guard

GRACE_SECONDS = 5
"""Seconds that requests may take to be answered once the server was asked to stop."""
BACKLOG = 512
"""Connections that wait to be accepted."""


def bound(host: str, port: int) -> socket.socket:
    """Take an address of this machine, so that another command cannot; 0 takes a free port.

    Raises:
        ConfigurationError: The address cannot be had.
    """
    where = f"task.host={host} task.port={port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{where}: there is no such address here ({error}); use 127.0.0.1.") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        reason = {
            errno.EADDRINUSE: "another program listens there",
            errno.EACCES: "this user may not listen there",
        }.get(error.errno or 0, str(error))
        raise ConfigurationError(f"{where}: {reason}; choose another task.port, or 0 for a free one.") from error
    return taken


def address(taken: socket.socket) -> str:
    """Return the address of a server for its clients."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def build_server(app: Guard) -> uvicorn.Server:
    """Return the server of an application, the same on every machine, whatever else is installed there."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # the application reports what fails in it
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def answer(app: Guard, taken: socket.socket) -> None:
    """Answer requests until a signal (Ctrl-C, or a plain `kill`) asks to stop."""
    with suppress(KeyboardInterrupt, PreemptedError):  # the signal, which uvicorn raises again at its end
        build_server(app).run(sockets=[taken])
