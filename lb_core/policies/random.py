"""Any endpoint."""

from dataclasses import dataclass
from typing import ClassVar

from lb_core.drawing import unit_interval, weighted_pick
from lb_core.policies.base import first_then_rest
from lb_core.types import Decision, Request, Snapshot


@dataclass(frozen=True, slots=True)
class Random:
    """An endpoint at random, with a chance in proportion to its weight.

    The chance is drawn from the request's id, so a replayed decision comes out the same.
    """

    name: ClassVar[str] = "random"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset()

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """One at random."""
        first = weighted_pick(snapshot.candidates, unit_interval(request.id))
        return first_then_rest(self.name, first, snapshot, reason="random")
