"""Who builds the shards of a stage.

The store decides what is finished, and the locks of `retro_lab.artifacts.shards` that no two processes build the same;
a dispatcher only decides which process builds what, and when. All give the same bytes.
"""

from collections.abc import Sequence
from time import sleep
from typing import Protocol

from retro_lab import ranks
from retro_lab.artifacts.shards import POLL_SECONDS, Shards
from retro_lab.console import Advance


class Dispatcher(Protocol):
    """Who builds the shards of a stage."""

    def build(self, shards: Shards, pending: Sequence[int], advance: Advance) -> None:
        """Return when all shards are finished, whoever built them.

        Args:
            shards: Of one stage.
            pending: Those that are not finished.
            advance: Advances the progress bar by units of the stage.

        Raises:
            RetroLabError: A shard cannot be built.
        """

    def close(self) -> None:
        """Free everything that was started for builds; `build` may be called again."""


class Ranks:
    """This process builds, and so does every other one that runs the same command: each takes the next free shard.

    So a slow process holds no shard but the one that it builds, and a dead one none: its lock ends with it.
    """

    def build(self, shards: Shards, pending: Sequence[int], advance: Advance) -> None:
        """Build shards until all are finished, here or by other processes."""
        # Processes start at different shards, or all would compete for the same locks.
        first = int(ranks.position() * len(pending))
        left = [*pending[first:], *pending[:first]]
        with shards:
            while left:
                mine = next((shard for shard in left if shards.build_if_free(shard, advance)), None)
                left = note_others(shards, left, mine, advance)

    def close(self) -> None:
        """Do nothing: nothing was started."""


def note_others(shards: Shards, left: Sequence[int], mine: int | None, advance: Advance) -> list[int]:
    """Return which of the shards that were left still are, and count what other processes did; wait if they are all."""
    now = shards.pending(left)
    others = set(left).difference(now, [mine])
    waiting = len(now) == len(left)  # for the shards that other processes hold
    advance(sum(shards.sizes[shard] for shard in others), "waiting" if waiting else "")
    if waiting:
        sleep(POLL_SECONDS)
    return now
