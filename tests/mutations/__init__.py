"""What the tests must notice: for every release and every verdict, the line left out or turned round.

`python -m tests.mutations` runs them all, each with its named test, in copies of the tracked files.
`tests/core/test_mutations.py` holds the list to the code.
"""

from tests.mutations import (
    attempts,
    ejections,
    endings,
    followers,
    held,
    links,
    moves,
    news,
    prefixes,
    printed,
    retries,
    runtime,
    scripts,
    signals,
    silence,
    silent,
    slots,
    sockets,
    stores,
    upkeep,
    verdicts,
    waits,
)
from tests.mutations.model import Mutation

ALL: tuple[Mutation, ...] = (
    *slots.MUTATIONS,
    *stores.MUTATIONS,
    *upkeep.MUTATIONS,
    *links.MUTATIONS,
    *scripts.MUTATIONS,
    *endings.MUTATIONS,
    *sockets.MUTATIONS,
    *runtime.MUTATIONS,
    *prefixes.MUTATIONS,
    *followers.MUTATIONS,
    *verdicts.MUTATIONS,
    *ejections.MUTATIONS,
    *silence.MUTATIONS,
    *silent.MUTATIONS,
    *news.MUTATIONS,
    *signals.MUTATIONS,
    *retries.MUTATIONS,
    *attempts.MUTATIONS,
    *held.MUTATIONS,
    *printed.MUTATIONS,
    *waits.MUTATIONS,
    *moves.MUTATIONS,
)

__all__ = ["ALL", "Mutation"]
