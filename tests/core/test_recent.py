"""When to come back: by how many wait and how fast it goes."""

import pytest

from lb_core.recent import Pace, Recent
from tests.core.build import Clock


def test_what_is_older_than_ten_seconds_does_not_count() -> None:
    clock = Clock()
    recent = Recent(clock=clock)
    for _ in range(30):
        recent.add()
        clock.now += 1
    assert recent.total() == 9  # the tenth second has just begun
    clock.now += 1000
    assert recent.total() == 0


@pytest.mark.parametrize(
    ("finished", "refused", "wait_s"),
    [
        (100, 1, 1),  # ten places a second come free
        (100, 10, 1),
        (100, 11, 2),
        (10, 5, 5),
        (10, 500, 30),  # never longer
        (0, 1, 10),  # nothing ended in ten seconds
    ],
)
def test_the_wait_is_the_queue_by_the_rate_at_which_it_moves(
    finished: int, refused: int, wait_s: int
) -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    for _ in range(finished):
        pace.finished()
    for _ in range(refused):
        pace.refused()
    assert pace.wait_s() == wait_s
    clock.now += 11
    pace.refused()
    assert pace.wait_s() == 10
