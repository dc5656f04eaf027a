"""What the next tokens need of retrieval: the neighbors that each sequence has, and the states of its last tokens.

A token attends to the neighbors that came last, if it is that token or one of the M - 1 after it: its place among those
M is i, from 0. The neighbors that a call begins with and those that come within it are the slots of the call. A slot is
attended to by consecutive tokens of a sequence:

    tokens of a call           e f g|h i j k|l       M = 4; h and l complete chunks
    place i                    1 2 3 0 1 2 3 0
    slot                       0 0 0 1 1 1 1 2

Attention has a block of W queries for each slot of each sequence. A long call has whole blocks, W = M, with each token
at its place. In a call of Q < M tokens, W = Q, and a block begins with the first token that attends to the slot; then
the places at which blocks begin differ.

Shapes: B sequences, Q next tokens, n new sets of neighbors, S slots, M chunk length, K neighbors, R neighbor tokens,
D width of the decoder, H heads, A head size.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from retro_lab.model.attention import CrossAttention, KeysValues
from retro_lab.model.distances import DistanceEncoder, Distances
from retro_lab.model.positions import Projected
from retro_lab.model.rotary import Rotations, rotate


class Arrival(NamedTuple):
    """New neighbors of one sequence."""

    row: int
    place: int
    """Of the first token that attends to them, counted from the beginning of the cache."""
    number: int
    """Among the new ones of this sequence."""


class KeptNeighbors:
    """Keys and values of the neighbors that each sequence has, in one layer of P."""

    def __init__(self) -> None:
        """Start without neighbors."""
        self.keys_values: Tensor | None = None  # [2, H, B, K, R, A]
        self._position: Tensor | None = None  # R s(d) of all places up to 2M - 2, [H, A, T]

    def distances(self, attention: CrossAttention, distances: Distances) -> Distances:
        """Project the distances of all places, if that is needed, once."""
        if attention.positions is None or not isinstance(distances, Tensor):
            return distances
        if self._position is None:
            self._position = attention.positions.projected(distances)
        return Projected(self._position)


class Step:
    """Which neighbors the next tokens attend to, for all layers of P.

    Attributes:
        since: place of the first token that attends to the neighbors that each sequence keeps after the call.
        attends_to_any: whether any token attends to any neighbor.
    """

    def __init__(
        self,
        layers: dict[CrossAttention, KeptNeighbors],
        arrivals: Sequence[Arrival],
        since: Sequence[int | None],
        start: int,
        count: int,
        chunk_length: int,
        device: torch.device,
    ) -> None:
        """Find the slots.

        Args:
            layers: the neighbors of before the call.
            arrivals: of the call, by sequence and place.
            since: place of the first token that attends to the neighbors of each sequence before the call, if any.
            start: tokens before the call.
            count: Q.
            chunk_length: M.
            device: of the tokens.
        """
        self._layers, self._chunk_length, self._count, self._device = layers, chunk_length, count, device
        self._batch = len(since)
        self._rows = [arrival.row for arrival in arrivals]
        self.since = list(since)
        for arrival in arrivals:
            self.since[arrival.row] = arrival.place
        # If all new neighbors come with the first token, they take the place of the old ones before it attends.
        self._at_once = all(arrival.place == start for arrival in arrivals)
        # The place i of the call's first token, where that attends to neighbors of slot 0.
        of_first = [
            start - place if place is not None and start - place < chunk_length else None
            for place in (self.since if self._at_once else since)
        ]
        some = any(place is not None for place in of_first)
        self.attends_to_any = some or not self._at_once
        self._old = some or self._at_once  # whether there is a slot 0 of neighbors that do not come within the call
        self._numbers = [arrival.number + self._old for arrival in arrivals]  # slots of the arrivals
        self._slots = 1 if self._at_once else max(self._numbers) + 1
        self._width = min(count, chunk_length)
        self._start: int | Tensor = 0  # place of the first query of each block, [B S] if they differ
        self._tokens: Tensor | None = None  # token of each query, [B, S W]; None if the tokens are the queries
        self._blocks: Tensor | None = None  # query of each token, [B, Q]
        self._slot_of_token: Tensor | None = None  # [B, Q]; None if there is one
        self._attends: Tensor | None = None  # bool [B, Q], False for tokens that attend to nothing; None if all attend
        self._present: Tensor | None = None
        if self.attends_to_any:
            self._arrange(of_first, arrivals, start)

    def _arrange(self, of_first: list[int | None], arrivals: Sequence[Arrival], start: int) -> None:
        """Find the queries of each slot."""
        count, m, device, short = self._count, self._chunk_length, self._device, self._count < self._chunk_length
        known = next((place for place in of_first if place is not None), 0)
        filled = [known if place is None else place for place in of_first]
        has = [place is not None for place in of_first]
        if self._at_once and short:  # as for a single token: the tokens are the queries
            same = min(filled) == max(filled)
            self._start = known if same else torch.tensor(filled, device=device)
            if not all(has) or max(filled) + count > m:
                until = [m - place if has_any else 0 for place, has_any in zip(filled, has, strict=True)]
                self._attends = torch.arange(count, device=device) < torch.tensor(until, device=device)[:, None]
            return
        firsts = [[count] * self._slots for _ in of_first]  # first token that attends to each slot
        places = torch.zeros(self._batch, self._slots, dtype=torch.int64)  # and its place
        if self._old:
            places[:, 0] = torch.tensor(filled)
            for of_row in firsts:
                of_row[0] = 0
        if not self._at_once:
            for arrival, slot in zip(arrivals, self._numbers, strict=True):
                firsts[arrival.row][slot] = arrival.place - start
        first, places = torch.tensor(firsts, device=device), places.to(device)
        base = first if short else first - places  # the token that is, or would be, the first query of a block
        if short and self._old:
            self._start = places.flatten()
        token = torch.arange(count, device=device)
        slots = (first[:, :, None] <= token).sum(1) - 1  # [B, Q], -1 for none
        at_slot = slots.clamp(min=0)
        self._attends = (slots >= 0) & (places.gather(1, at_slot) + token - first.gather(1, at_slot) < m)
        if self._old:
            self._attends &= (slots > 0) | torch.tensor(has, device=device)[:, None]
        self._slot_of_token = at_slot
        queries = base[:, :, None] + torch.arange(self._width, device=device)
        self._tokens = queries.clamp(0, count - 1).flatten(1)
        self._blocks = (at_slot * self._width + token - base.gather(1, at_slot)).clamp(0, self._slots * self._width - 1)

    def replaced(self, old: Tensor | None, new: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Put new neighbors, in whatever form, into the slots.

        Args:
            old: [..., B, ...], those of before the call; None if there are none. It may be changed.
            new: [..., n, ...], those of the arrivals.
            dim: of B and n.

        Returns:
            [..., B S, ...] of all slots, and [..., B, ...] of those that each sequence keeps after the call.
        """
        if self._at_once and self._rows == list(range(self._batch)):
            return new, new
        moved, rows = new.movedim(dim, 0), torch.tensor(self._rows, device=new.device)
        before = None if old is None else old.movedim(dim, 0)
        if self._at_once:
            kept = moved.new_zeros(self._batch, *moved.shape[1:]) if before is None else before
            kept[rows] = moved
            kept = kept.movedim(0, dim)
            return kept, kept
        slots = moved.new_zeros(self._batch, self._slots, *moved.shape[1:])
        if self._old and before is not None:
            slots[:, 0] = before
        slots[rows, torch.tensor(self._numbers, device=new.device)] = moved
        last = [0] * self._batch
        for row, slot in zip(self._rows, self._numbers, strict=True):
            last[row] = slot  # they are in order
        kept = slots[torch.arange(self._batch, device=new.device), torch.tensor(last, device=new.device)]
        return slots.flatten(0, 1).movedim(0, dim).contiguous(), kept.movedim(0, dim).contiguous()

    def mask(self, present: Tensor) -> None:
        """Attend to the present tokens alone: bool [B S, K, R] of all slots."""
        self._present = present
        some = present.flatten(1).any(1).view(self._batch, -1)
        some = some if self._slot_of_token is None else some.gather(1, self._slot_of_token)
        self._attends = some if self._attends is None else self._attends & some

    def attend(self, attention: CrossAttention, hidden: Tensor, encoded: Tensor | None, distances: Distances) -> Tensor:
        """Let the next tokens attend to the neighbors that came last.

        Args:
            attention: of a layer of P; its neighbors are updated.
            hidden: [B, Q, D].
            encoded: [n, K, R, E], the arrivals; None if there are none.
            distances: i - i' + M - 1 of places up to 2M - 2, encoded.

        Returns:
            [B, Q, D], zeros where a token attends to nothing.
        """
        width, layer = hidden.shape[2], self._layers.setdefault(attention, KeptNeighbors())
        slots = layer.keys_values
        if encoded is not None:
            key, value = attention.keys_values(encoded)
            if isinstance(distances, Rotations) and distances.key is not None and attention.use_positions:
                key = rotate(key, distances.key)
            slots, layer.keys_values = self.replaced(slots, torch.stack([key, value]), 2)
        assert slots is not None
        queries = hidden.unsqueeze(1)
        if self._tokens is not None:
            queries = hidden.gather(1, self._tokens[..., None].expand(-1, -1, width))
            queries = queries.view(self._batch * self._slots, 1, self._width, width)
        attended = attention(
            queries,
            context=KeysValues(slots[0], slots[1]),
            distances=self._of_queries(layer.distances(attention, distances)),
            present=self._present,
        ).view(self._batch, -1, width)
        if self._blocks is not None:
            attended = attended.gather(1, self._blocks[..., None].expand(-1, -1, width))
        return attended if self._attends is None else attended * self._attends[..., None]

    def _of_queries(self, distances: Distances) -> Distances:
        """Cut the distances of all places to those of the queries."""
        m, width, start = self._chunk_length, self._width, self._start
        if isinstance(distances, Rotations):
            if isinstance(start, int):
                return Rotations(distances.query[:, start : start + width], None)
            places = start[:, None] + torch.arange(width, device=start.device)
            return Rotations(distances.query[:, places].unsqueeze(2), None)
        if isinstance(distances, Tensor):  # of an attention without positions
            return distances
        # Distances descend: the block's largest is that of its last query to the first key.
        position = distances.position
        first, length = 2 * m - 1 - width - start, width + position.shape[2] - (2 * m - 1)
        if isinstance(first, int):
            return Projected(position[..., first : first + length])
        columns = first[:, None] + torch.arange(length, device=first.device)  # [B S, T]
        return Projected(position[..., columns].transpose(1, 2))


class NeighborCache:
    """The neighbors and the last states of B sequences."""

    def __init__(self, chunk_length: int) -> None:
        """Start without a token.

        Args:
            chunk_length: M.
        """
        self._chunk_length = chunk_length
        self._since: list[int | None] = []
        self._shape: tuple[int, int] | None = None  # K, R
        self._present: Tensor | None = None  # bool [B, K, R]; None if all tokens of all neighbors are real
        self._layers: dict[CrossAttention, KeptNeighbors] = {}
        self._distances: Distances | None = None
        self._states: Tensor | None = None  # [B, 4M, D]: of the last tokens, and room for more
        self._held = 0  # tokens whose states are there

    def step(
        self,
        arrivals: Sequence[Arrival],
        neighbors: Tensor | None,
        present: Tensor | None,
        tokens: Tensor,
        start: int,
    ) -> Step:
        """Begin a call.

        Args:
            arrivals: new neighbors, by sequence and place.
            neighbors: of the arrivals, [n, K, R]; None if there are none.
            present: bool [n, K, R], False where a token of the neighbors is padding; None if there is none.
            tokens: [B, Q].
            start: tokens before the call.

        Raises:
            ValueError: The shape of the neighbors has changed.
        """
        batch, count = tokens.shape
        since = self._since or [None] * batch
        step = Step(self._layers, arrivals, since, start, count, self._chunk_length, tokens.device)
        self._since = step.since
        if neighbors is not None:
            shape = neighbors.shape[1], neighbors.shape[2]
            if self._shape is not None and shape != self._shape:
                raise ValueError(
                    f"All neighbors of a cache have one shape [k, r], {list(self._shape)}, not {list(shape)}."
                )
            self._shape = shape
            if present is not None and present.all():
                present = None
            old = self._present
            if present is not None or old is not None:
                new = torch.ones_like(neighbors, dtype=torch.bool) if present is None else present
                old = new.new_ones(batch, *shape) if old is None else old
                slots, self._present = step.replaced(old, new, 0)
                step.mask(slots)
        elif self._present is not None and step.attends_to_any:
            step.mask(self._present)
        return step

    def distances(self, encoder: DistanceEncoder, like: Tensor) -> Distances:
        """Distances i - i' + M - 1 of places i up to 2M - 2, encoded once."""
        if self._distances is None:
            assert self._shape is not None
            m = self._chunk_length
            self._distances = encoder.between(2 * m - 1, self._shape[1], m - 1, like)
        return self._distances

    def read(
        self, hidden: Tensor, arrivals: Sequence[Arrival], padding: Sequence[int], start: int
    ) -> tuple[Tensor, Tensor | None] | None:
        """Read the next states of layer min(P), and find the last M up to each arrival.

        Args:
            hidden: H after the layer's attention, [B, Q, D].
            arrivals: of the call.
            padding: of each sequence.
            start: tokens before the call.

        Returns:
            H_u [1, n, M, D], and bool [1, n, M], False where a token is padding (None if none is); None without
            arrivals.
        """
        found, m = None, self._chunk_length
        if arrivals:
            states, first = hidden, start  # with the place of the first state
            if self._states is not None:
                tail = min(self._held, m - 1)
                states = torch.cat([self._states[:, self._held - tail : self._held], hidden], dim=1)
                first = start - tail
            rows, places = [arrival.row for arrival in arrivals], [arrival.place for arrival in arrivals]
            window = torch.tensor(places, device=hidden.device)[:, None] + torch.arange(1 - m, 1, device=hidden.device)
            index = torch.tensor(rows, device=hidden.device)[:, None]
            is_text = None
            if any(place + 1 - m < padding[row] for row, place in zip(rows, places, strict=True)):
                is_text = (window >= torch.tensor(padding, device=hidden.device)[index])[None]
            found = states[index, (window - first).clamp(min=0)][None], is_text
        self._append(hidden)
        return found

    def select(self, rows: Sequence[int]) -> None:
        """Keep the sequences `rows`, in this order."""
        self._since = [self._since[row] for row in rows]
        if self._states is None:
            return
        index = torch.tensor(rows, device=self._states.device)
        self._states = self._states[index]
        self._present = None if self._present is None else self._present[index]
        for layer in self._layers.values():
            if layer.keys_values is not None:
                layer.keys_values = layer.keys_values[:, :, index]

    def truncate(self, length: int, shorter: int) -> None:
        """Forget the tokens after the first `shorter` of `length`.

        Raises:
            ValueError: Neighbors came with one of them, or they are more than M.
        """
        if any(place is not None and place >= shorter for place in self._since):
            raise ValueError(f"A cache of {length} tokens can't be cut to {shorter}, back over the end of a chunk.")
        if length - shorter > self._chunk_length:
            raise ValueError(
                f"A cache of {length} tokens can't be cut to {shorter}: it can forget {self._chunk_length} at most."
            )
        self._held -= length - shorter

    @classmethod
    def join(cls, caches: Sequence[Self], shifts: Sequence[int]) -> Self:
        """Return one cache of all sequences; those of a cache move by its shift, as `DecoderState` says.

        Raises:
            ValueError: The shapes of the neighbors differ.
        """
        joined, m = cls(caches[0]._chunk_length), caches[0]._chunk_length
        shapes = {cache._shape for cache in caches if cache._shape is not None}
        if len(shapes) > 1:
            raise ValueError(f"All neighbors of joined caches have one shape [k, r], not {sorted(shapes)}.")
        for cache, shift in zip(caches, shifts, strict=True):
            joined._since += [None if place is None else place + shift for place in cache._since]
        joined._held = min(2 * m, max(cache._held for cache in caches))
        states = []
        for cache in caches:
            assert cache._states is not None
            last = cache._states[:, max(0, cache._held - joined._held) : cache._held]
            states.append(F.pad(last, (0, 0, joined._held - last.shape[1], 4 * m - joined._held)))
        joined._states = torch.cat(states)
        if not shapes:
            return joined
        joined._shape = shapes.pop()
        sizes = [len(cache._since) for cache in caches]
        if any(cache._present is not None for cache in caches):
            everything = joined._states.new_ones(max(sizes), *joined._shape, dtype=torch.bool)
            joined._present = torch.cat(
                [
                    everything[:size] if cache._present is None else cache._present
                    for cache, size in zip(caches, sizes, strict=True)
                ]
            )
        for attention in {attention: None for cache in caches for attention in cache._layers}:
            known = [cache._layers[attention].keys_values if attention in cache._layers else None for cache in caches]
            like = next(one for one in known if one is not None)
            parts = [
                like.new_zeros(*like.shape[:2], size, *like.shape[3:]) if one is None else one
                for one, size in zip(known, sizes, strict=True)
            ]
            joined._layers[attention] = KeptNeighbors()
            joined._layers[attention].keys_values = torch.cat(parts, dim=2)
        return joined

    def _append(self, hidden: Tensor) -> None:
        """Keep the next states [B, Q, D], and at least the last 2M in all: M tokens can be forgotten again."""
        kept, count = 2 * self._chunk_length, hidden.shape[1]
        if self._states is None:
            self._states = hidden.new_empty(len(hidden), 2 * kept, hidden.shape[2])
        if count >= kept:
            self._states[:, :kept], self._held = hidden[:, -kept:], kept
            return
        if self._held + count > 2 * kept:
            self._states[:, :kept] = self._states[:, self._held - kept : self._held].clone()
            self._held = kept
        self._states[:, self._held : self._held + count] = hidden
        self._held += count
