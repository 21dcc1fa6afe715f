"""What the words of error events count as."""

import pytest

from lb_core.error_words import known_status, status_of


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("503", 503),
        ("429", 429),
        ("overloaded_error", 529),  # Anthropic
        ("overloaded", 529),  # TGI
        ("rate_limit_error", 429),
        ("rate_limit_exceeded", 429),
        ("RateLimitError", 429),
        ("unavailable_error", 503),  # llama.cpp
        ("invalid_request_error", 400),
        ("BadRequestError", 400),
        ("context_length_exceeded", 400),
        ("exceed_context_size_error", 400),  # llama.cpp
        ("content_filter", 400),
        ("validation", 422),  # TGI
        ("authentication_error", 401),
        ("permission_error", 403),
        ("NotFoundError", 404),
        ("model_not_found", 404),
        ("request_too_large", 413),
        ("not_supported_error", 501),
        ("timeout_error", 504),
    ],
)
def test_a_known_word_has_its_status(word: str, status: int) -> None:
    assert known_status(word) == status_of(word) == status


@pytest.mark.parametrize(
    "word",
    ["api_error", "internal_error", "InternalServerError", "server_error", "error", "", "1001", "42", "٥٠٣"],
)
def test_any_other_word_is_a_fault_of_the_engine(word: str) -> None:
    assert known_status(word) is None
    assert status_of(word) == 500
