"""Why a request is not answered: a status of HTTP and one sentence."""


class RefusedError(Exception):
    """A request that is not answered; the message is the sentence that the client gets."""

    def __init__(self, sentence: str, status: int = 400, headers: dict[str, str] | None = None) -> None:
        """Refuse a request with a sentence that names what was given and what to do, and a status of HTTP."""
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}
