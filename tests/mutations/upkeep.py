"""What keeps the shared ledger true: the rounds of each process."""

from tests.mutations.model import Mutation

_LEDGER = "lb_core/stores/ledger.py"
_UPKEEP = "lb_core/stores/upkeep.py"

_DEFECTS = "tests/redis/test_defects.py::"
_TELLING = "tests/redis/test_telling.py::"

MUTATIONS = (
    # Upkeep.
    Mutation(
        "what a dead balancer held stays",
        _UPKEEP,
        "Upkeep._tend",
        "self._stats.reaped += await self._ledger.reap(owner)",
        "pass",
        _DEFECTS + "test_h1_what_a_killed_balancer_held_comes_back",
    ),
    Mutation(
        "of a dead balancer one chunk comes back",
        _LEDGER,
        "RemoteLedger.reap",
        "while left:",
        "for _ in range(1):",
        _TELLING + "test_all_that_a_dead_balancer_held_comes_back_at_once",
    ),
    Mutation(
        "a slot in our ledger that we do not hold stays",
        _UPKEEP,
        "Upkeep._resync",
        "await self._ledger.release(list(chunk))",
        "pass",
        _TELLING + "test_a_slot_that_we_do_not_hold_is_given_back_at_the_next_beat",
    ),
    Mutation(
        "a beat does not compare the ledger with what we hold",
        _UPKEEP,
        "Upkeep._tend",
        "or not held <= beat.slots <= held + pending",
        "",
        _TELLING + "test_a_slot_that_we_do_not_hold_is_given_back_at_the_next_beat",
    ),
    Mutation(
        "what we hold is not told anew",
        _UPKEEP,
        "Upkeep._resync",
        "await self._ledger.hold((held.slot, held.lease.endpoint.name) for held in now)",
        "False",
        _TELLING + "test_a_server_that_has_forgotten_us_is_told_at_the_next_request",
    ),
    Mutation(
        "a resync that failed is not done again",
        _UPKEEP,
        "Upkeep._resync",
        "self._resyncs_due = max(again + 1, self._resyncs_due)",
        "pass",
        _TELLING + "test_a_resync_that_failed_is_done_again",
    ),
    Mutation(
        "a link that is back is not told what we hold",
        _UPKEEP,
        "Upkeep.link_changed",
        "self.suspect(times=2 if up else 1)",
        "pass",
        _TELLING + "test_a_link_that_is_back_is_told_what_we_hold",
    ),
    Mutation(
        "what others held is counted while the link is down",
        _UPKEEP,
        "Upkeep.link_changed",
        "self._books.alone()",
        "pass",
        _TELLING + "test_alone_only_its_own_count",
    ),
    Mutation(
        "a lost count is not corrected",
        _UPKEEP,
        "Upkeep._compare",
        "if too_low or self._check_due:",
        "if False:",
        _TELLING + "test_a_count_that_is_lower_than_what_we_hold_is_corrected",
    ),
    Mutation(
        "the sums are never checked",
        _UPKEEP,
        "Upkeep._compare",
        "if await self._ledger.may_check(int(self._fsck_s * 900)):",
        "if False:",
        "tests/redis/test_upkeep.py::test_wrong_sums_are_corrected_by_one_balancer",
    ),
    Mutation(
        "what the others have is not heard",
        _UPKEEP,
        "Upkeep._compare",
        "self._books.hear_all(counts)",
        "pass",
        "tests/redis/test_upkeep.py::test_every_balancer_hears_the_others_within_a_beat",
    ),
    Mutation(
        "what is given back in a resync is not told",
        _LEDGER,
        "RemoteLedger.release",
        "await self._link.run(RELEASE, (self._counts, self._own), *slots)",
        "0",
        _TELLING + "test_a_slot_that_we_do_not_hold_is_given_back_at_the_next_beat",
    ),
)
