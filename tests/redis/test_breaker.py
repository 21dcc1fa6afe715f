"""When a server is left alone, and for how long."""

from lb_core.stores.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker() -> tuple[Breaker, Clock]:
    clock = Clock()
    made = Breaker(clock)
    made.closed()
    return made, clock


def test_it_opens_after_two_failures_in_a_row() -> None:
    made, _ = breaker()
    assert [made.failed(), made.answered(0.01), made.failed(), made.failed()] == [False, False, False, True]


def test_it_opens_after_three_slow_calls_within_a_second() -> None:
    made, clock = breaker()
    found = []
    for pause in (0.0, 0.7, 0.7, 0.2):
        clock.now += pause
        found.append(made.answered(0.21))
    assert found == [False, False, False, True]


def test_a_failure_is_slow_too() -> None:
    made, _ = breaker()
    assert [made.failed(), made.answered(0.3), made.answered(0.3)] == [False, False, True]


def test_what_was_before_the_pause_does_not_count_after_it() -> None:
    made, _ = breaker()
    assert [made.failed(), made.answered(0.3)] == [False, False]
    assert not made.failed()
    made.closed()
    assert [made.failed(), made.answered(0.3)] == [False, False]


def test_the_pause_doubles_for_a_slow_server_only() -> None:
    made, _ = breaker()
    assert [made.pause_s(slow=True) for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert made.pause_s(slow=False) == 0.5


def test_the_pause_starts_anew_when_the_server_was_good_for_a_while() -> None:
    made, clock = breaker()
    assert [made.pause_s(slow=True), made.pause_s(slow=True)] == [0.5, 1]
    made.closed()
    clock.now += 5
    assert made.pause_s(slow=True) == 2
    made.closed()
    clock.now += 10
    assert made.pause_s(slow=True) == 0.5
