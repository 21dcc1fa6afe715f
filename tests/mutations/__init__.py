"""What the tests must notice: for every release and every verdict, the line left out or turned round.

`python -m tests.mutations` runs them all, each with its named test, in copies of the tracked files.
`tests/core/test_mutations.py` holds the list to the code.
"""

from tests.mutations import (
    attempts,
    ejections,
    endings,
    followers,
    retries,
    runtime,
    scripts,
    signals,
    slots,
    sockets,
    stores,
    upkeep,
    verdicts,
)
from tests.mutations.model import Mutation

ALL: tuple[Mutation, ...] = (
    *slots.MUTATIONS,
    *stores.MUTATIONS,
    *upkeep.MUTATIONS,
    *scripts.MUTATIONS,
    *endings.MUTATIONS,
    *sockets.MUTATIONS,
    *runtime.MUTATIONS,
    *followers.MUTATIONS,
    *verdicts.MUTATIONS,
    *ejections.MUTATIONS,
    *signals.MUTATIONS,
    *retries.MUTATIONS,
    *attempts.MUTATIONS,
)

__all__ = ["ALL", "Mutation"]
