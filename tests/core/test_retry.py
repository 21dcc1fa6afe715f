"""Verdicts on retries, and their budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_core.replies import error_reply
from lb_core.request import LLMRequest
from lb_core.retry import (
    Cause,
    Failure,
    Repeat,
    Retries,
    RetryBudget,
    RetryConfig,
    Verdict,
    error_of,
    repeatable,
)
from tests.core.build import Clock


def retries(
    config: RetryConfig | None = None, *, repeat: Repeat = Repeat.SAFE, budget: RetryBudget | None = None
) -> Retries:
    return Retries(config or RetryConfig(), budget or RetryBudget(clock=Clock()), repeat)


def spent(failure: Failure, tries: Retries) -> int:
    """How often the failure may be answered by a retry."""
    count = 0
    while count < 20 and tries.judge(failure) is Verdict.RETRY:
        tries.spend(failure)
        count += 1
    return count


@pytest.mark.parametrize("cause", [Cause.CONNECT, Cause.CONNECT_TIMEOUT])
@pytest.mark.parametrize("repeat", list(Repeat))
def test_a_failed_connection_goes_to_three_others_whatever_the_request(cause: Cause, repeat: Repeat) -> None:
    assert spent(Failure(cause), retries(repeat=repeat)) == 3


def test_a_failed_connection_needs_no_budget() -> None:
    config = RetryConfig(budget_percent=0, budget_per_s=0)
    assert spent(Failure(Cause.CONNECT), retries(config)) == 3
    assert retries(config).judge(Failure(Cause.CLOSED)) is Verdict.BUDGET_SPENT


@pytest.mark.parametrize(
    "failure",
    [
        Failure(Cause.CLOSED),
        Failure(Cause.STALE),
        Failure(Cause.INVALID),
        Failure(Cause.ERROR_EVENT, status=503),
        Failure(Cause.ERROR_EVENT, status=500),
        Failure(Cause.ERROR_EVENT, status=429),
        Failure(Cause.ERROR_EVENT, status=529),
        *(Failure(Cause.STATUS, status=status) for status in (429, 502, 503, 504, 529)),
    ],
    ids=str,
)
def test_what_was_sent_is_sent_again_once(failure: Failure) -> None:
    tries = retries()
    assert spent(failure, tries) == 1
    assert tries.judge(failure) is Verdict.ATTEMPTS_SPENT
    assert tries.judge(Failure(Cause.CONNECT)) is Verdict.RETRY  # counted apart


@pytest.mark.parametrize(
    "failure",
    [
        *(Failure(Cause.STATUS, status=status) for status in (400, 401, 404, 408, 422, 500, 501)),
        Failure(Cause.ERROR_EVENT, status=400),
        Failure(Cause.ERROR_EVENT, status=404),
    ],
    ids=str,
)
def test_what_another_endpoint_would_say_too_is_passed_on(failure: Failure) -> None:
    assert retries().judge(failure) is Verdict.NOT_RETRYABLE


def test_the_statuses_are_configurable() -> None:
    tries = retries(RetryConfig(on_statuses=(500,)))
    assert tries.judge(Failure(Cause.STATUS, status=500)) is Verdict.RETRY
    assert tries.judge(Failure(Cause.STATUS, status=503)) is Verdict.NOT_RETRYABLE


def test_our_own_time_out_is_never_tried_again() -> None:
    assert retries().judge(Failure(Cause.TIMED_OUT)) is Verdict.TIMED_OUT


@pytest.mark.parametrize("cause", list(Cause))
def test_disabled_is_disabled(cause: Cause) -> None:
    verdict = retries(RetryConfig(enabled=False)).judge(Failure(cause, status=503))
    assert verdict is (Verdict.TIMED_OUT if cause is Cause.TIMED_OUT else Verdict.DISABLED)


@pytest.mark.parametrize(
    ("method", "path", "llm", "expected"),
    [
        ("POST", "/v1/chat/completions", LLMRequest("chat"), Repeat.SAFE),
        ("POST", "/v1/responses", LLMRequest("responses"), Repeat.SAFE),
        ("POST", "/v1/responses", LLMRequest("responses", stored=True), Repeat.NEVER),
        ("POST", "/v1/responses", LLMRequest("responses", background=True), Repeat.NEVER),
        ("POST", "/v1/batches", None, Repeat.NEVER),
        ("POST", "/tenant/v1/files?x=/", None, Repeat.NEVER),
        ("DELETE", "/v1/files/f-1", None, Repeat.NEVER),
        ("GET", "/v1/files/f-1", None, Repeat.SAFE),
        ("GET", "/v1/models", None, Repeat.SAFE),
        ("HEAD", "/", None, Repeat.SAFE),
        ("OPTIONS", "/", None, Repeat.SAFE),
        ("PUT", "/x", None, Repeat.SAFE),
        ("DELETE", "/x", None, Repeat.SAFE),
        ("POST", "/rerank", None, Repeat.UNLESS_TAKEN),
        ("POST", "/rerank", LLMRequest("other", "m"), Repeat.UNLESS_TAKEN),
        ("POST", "/v1/batches", LLMRequest("other", "m"), Repeat.NEVER),
        ("POST", "/v1/filesystem", None, Repeat.UNLESS_TAKEN),
        ("PATCH", "/x", None, Repeat.UNLESS_TAKEN),
    ],
)
def test_what_may_be_repeated(method: str, path: str, llm: LLMRequest | None, expected: Repeat) -> None:
    assert repeatable(method=method, path=path, llm=llm) is expected


@pytest.mark.parametrize("cause", [Cause.CLOSED, Cause.INVALID, Cause.ERROR_EVENT])
@pytest.mark.parametrize("repeat", [Repeat.NEVER, Repeat.UNLESS_TAKEN])
def test_what_may_have_been_carried_out_is_not_sent_again(cause: Cause, repeat: Repeat) -> None:
    assert retries(repeat=repeat).judge(Failure(cause)) is Verdict.NOT_REPEATABLE


def test_what_was_not_taken_is_sent_again_unless_it_is_stored() -> None:
    for status, expected in ((503, Verdict.RETRY), (429, Verdict.RETRY), (502, Verdict.NOT_REPEATABLE)):
        failure = Failure(Cause.STATUS, status=status)
        assert retries(repeat=Repeat.UNLESS_TAKEN).judge(failure) is expected
        assert retries(repeat=Repeat.NEVER).judge(failure) is Verdict.NOT_REPEATABLE


def test_the_budget_is_a_tenth_of_the_last_ten_seconds_and_one_a_second() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    for _ in range(200):
        budget.requested()
    assert drained(budget) == 30
    clock.now += 9
    assert drained(budget) == 0
    clock.now += 1  # both the requests and the retries are past
    assert drained(budget) == 10
    clock.now += 3600
    assert drained(budget) == 10


def test_without_a_socket_there_is_no_other_attempt() -> None:
    assert retries().judge(Failure(Cause.NO_SOCKET)) is Verdict.NOT_RETRYABLE


def test_the_budget_survives_a_clock_that_goes_back() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    clock.now -= 500
    budget.requested()
    assert drained(budget) == 10


def test_each_retry_is_taken_from_the_budget_that_all_share() -> None:
    budget = RetryBudget(clock=Clock())
    assert sum(spent(Failure(Cause.CLOSED), retries(budget=budget)) for _ in range(20)) == 10
    assert retries(budget=budget).judge(Failure(Cause.CLOSED)) is Verdict.BUDGET_SPENT


def drained(budget: RetryBudget, config: RetryConfig | None = None) -> int:
    count = 0
    while budget.allows(config or RetryConfig()):
        budget.retried()
        count += 1
    return count


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=200))
def test_the_budget_counts_as_a_list_of_all_times_would(steps: list[tuple[float, bool]]) -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    requests: list[int] = []
    done: list[int] = []
    for pause_s, is_request in steps:
        clock.now += pause_s
        second = int(clock.now)
        recent = [sum(second - 10 < at for at in times) for times in (requests, done)]
        assert budget.allows(RetryConfig()) == (recent[1] + 1 <= recent[0] / 10 + 10)
        if is_request:
            budget.requested()
            requests.append(second)
        elif budget.allows(RetryConfig()):
            budget.retried()
            done.append(second)


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (Cause.CONNECT, 503),
        (Cause.CONNECT_TIMEOUT, 503),
        (Cause.NO_SOCKET, 503),
        (Cause.CLOSED, 502),
        (Cause.INVALID, 502),
        (Cause.TIMED_OUT, 504),
    ],
)
def test_the_end_has_a_status_of_its_own(cause: Cause, status: int) -> None:
    reply = error_reply(error_of(Failure(cause)), "chat")
    assert reply.status == status
    assert ("retry-after" in reply.headers) == (status == 503)


def test_an_error_event_of_a_full_queue_is_told_as_busy() -> None:
    for status, code in ((503, "endpoint_busy"), (429, "endpoint_busy"), (500, "endpoint_failed")):
        assert error_of(Failure(Cause.ERROR_EVENT, status=status)).code == code
