"""What the code or type of an error event means, as the status that the engine would have answered with.

Engines and APIs spell the same word in several ways (`BadRequestError`, `bad_request_error`), so only its
letters count, without `error` at the end. Words that are not here are faults of the engine, such
as `api_error` or `InternalServerError`.
"""

import re

NOT_TAKEN = frozenset({429, 503, 529})
"""Statuses by which an engine says that it is full and has not begun. 529 is Anthropic's."""

_STATUS = re.compile(r"[45][0-9]{2}")
_NO_LETTER = re.compile(r"[^a-z]")
# OpenAI: platform.openai.com/docs/guides/error-codes; Anthropic: docs.anthropic.com/en/api/errors.
_WORDS = {
    400: "badrequest invalidrequest invalidprompt contextlengthexceeded contentfilter contentpolicyviolation "
    "exceedcontextsize",  # the last one is llama.cpp's
    401: "authentication invalidapikey",
    402: "billing",
    403: "permission permissiondenied",
    404: "notfound modelnotfound",
    413: "requesttoolarge",
    422: "validation unprocessableentity",  # TGI; vLLM
    429: "ratelimit ratelimitexceeded toomanyrequests insufficientquota",
    501: "notsupported",  # llama.cpp
    503: "unavailable serviceunavailable",  # llama.cpp; vLLM
    504: "timeout",
    529: "overloaded",  # Anthropic; TGI
}
_STATUS_OF = {word: status for status, words in _WORDS.items() for word in words.split()}


def known_status(word: str) -> int | None:
    """The status that the word stands for, or is; None where it tells nothing."""
    if _STATUS.fullmatch(word):
        return int(word)
    return _STATUS_OF.get(_NO_LETTER.sub("", word.lower()).removesuffix("error"))


def status_of(word: str) -> int:
    """The status that the word counts as."""
    return known_status(word) or 500
