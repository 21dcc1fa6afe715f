"""How an endpoint that was silent is probed, and what a probe shows that gets nothing."""

import pytest

from lb_core.health import IGNORED, State, Verdict, Work
from tests.core.test_health import Rig
from tests.core.test_health_silence import FAILURE, TIMED_OUT, pass_time, silent


def test_while_streams_wait_there_is_no_probe_and_two_minutes_afterwards_there_is_one() -> None:
    rig, stream = silent()
    pass_time(rig, 600)
    assert rig.said("e0") == [("ejected", "silent")], "told once"
    stream.ended(IGNORED)
    pass_time(rig, 119)
    assert rig.eligible().out == {"e0": State.EJECTED}
    pass_time(rig, 2)
    assert rig.eligible().probes == {"e0"}
    probe = rig.start("e0", Work.STREAM)
    assert "e0" not in rig.available()
    probe.content()
    assert rig.said("e0")[-1] == ("healthy", "recovered")


@pytest.mark.parametrize(
    ("verdict", "after_s", "out"),
    [(TIMED_OUT, 1, True), (IGNORED, 5, True), (IGNORED, 4, False), (FAILURE, 1, True)],
)
def test_a_probe_that_gets_nothing_puts_it_out_again(verdict: Verdict, after_s: int, out: bool) -> None:
    rig, stream = silent()
    stream.ended(IGNORED)
    pass_time(rig, 122)
    probe = rig.start("e0", Work.STREAM)
    pass_time(rig, after_s)
    probe.ended(verdict)
    assert ("e0" in rig.eligible().out) is out
    if out:
        assert rig.said("e0")[-1][0] == "ejected"
    else:
        assert rig.eligible().probes == {"e0"}


def test_a_probe_that_gets_nothing_puts_it_out_for_two_minutes_at_once() -> None:
    rig, stream = silent()
    stream.ended(IGNORED)
    pass_time(rig, 122)
    probe = rig.start("e0", Work.STREAM)
    probe.ended(TIMED_OUT)
    pass_time(rig, 119)
    assert rig.eligible().out == {"e0": State.EJECTED}
    pass_time(rig, 2)
    assert rig.eligible().probes == {"e0"}


def test_a_probe_that_hangs_puts_it_out_again_and_no_other_follows() -> None:
    rig, stream = silent()
    stream.ended(IGNORED)
    pass_time(rig, 122)
    rig.start("e0", Work.STREAM)
    for _ in range(600):
        rig.wait(1)
        assert "e0" not in rig.available()


def test_what_waited_before_the_probe_does_not_end_in_its_place() -> None:
    rig = Rig(4)
    before = rig.start("e0", Work.ANSWER)
    stream = rig.start("e0", Work.STREAM)
    pass_time(rig, 125)
    stream.ended(IGNORED)
    pass_time(rig, 122)
    before.ended(TIMED_OUT)
    assert rig.eligible().probes == {"e0"}


def test_a_probe_after_failures_whose_client_leaves_changes_nothing() -> None:
    rig = Rig(4)
    rig.report("e0", FAILURE, 3)
    pass_time(rig, 11)
    probe = rig.start("e0", Work.STREAM)
    pass_time(rig, 6)
    probe.ended(IGNORED)
    assert rig.eligible().probes == {"e0"}
