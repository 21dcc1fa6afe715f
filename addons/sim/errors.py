"""Why a simulated engine turns a request away.

SimError
├── BadRequest      400
├── NoSuchModel     404
└── QueueFull       503
"""

from __future__ import annotations


class SimError(Exception):
    """Answered in OpenAI's error form: `status`, and `kind` as the error's type, in vLLM's words."""

    status = 500
    kind = "InternalServerError"


class BadRequest(SimError):
    status = 400
    kind = "BadRequestError"


class NoSuchModel(SimError):
    status = 404
    kind = "NotFoundError"


class QueueFull(SimError):
    status = 503
    kind = "Service Unavailable"

    def __init__(self) -> None:
        super().__init__("The engine is currently busy: too many queued requests. Please retry later.")
