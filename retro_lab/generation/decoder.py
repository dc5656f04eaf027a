"""The loop that writes texts, token by token, with retrieval at the end of each chunk.

Each step is the same: propose, read, accept. The tokens of a text that the model has not read yet are read, and after
them, if there is a drafter, tokens that it proposes. What is chosen from the logits after each of them is the next
token; as long as it is the proposed one, the logits after that one count as well:

    text          |m a b c|d e f                        f is not read yet
    propose                      x y z                  up to the end of the chunk
    read                       f x y z                  one pass
    accept                       x y q                  chosen after f, x and y; z was wrong, so the cache forgets it

Every token is chosen from logits given the same text before it, and by the same draws, with drafts or without: the text
is the same. A search is due before the model reads the token that completes a chunk, which attends to what the chunk
retrieves. Proposed tokens never complete a chunk.

Only a text that is written alone has drafts. Texts that are written together share the cost of a pass already, and
would have to wait for the one whose proposals are worst: six of them are written 1.7 times as fast together without
drafts as one after the other with them, and no faster together with drafts. (Texts that repeat themselves without end,
as those of an untrained model do, would be.)

Texts of unequal length are read together once each has been read up to its last token. What is longer than a sequence
moves: whole chunks are left out on the left, so that half a sequence is left, which is read again:

    text       |marker c0|c1      |c2      |c3   ?
    sequence             [c1      |c2      |c3   ]?      for a length of three chunks
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from retro_lab.generation.retrieved import Found, Retrieve
from retro_lab.generation.sampling import Sampling
from retro_lab.model.cache import Cache
from retro_lab.model.language_model import LanguageModel


class Drafter(Protocol):
    """Guesses the next tokens of one text, which the model then verifies in one pass."""

    def add(self, neighbors: Sequence[Sequence[int]]) -> None:
        """Take note of what a chunk of the text retrieved: tokens of each neighbor, nearest first."""

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """Guess the next tokens.

        Args:
            tokens: Of the text so far, the prompt included; the same list at each call.
            most: Tokens that can be verified, 1 or more.

        Returns:
            At most `most` tokens; none where there is no good guess.
        """

    def judge(self, accepted: int) -> None:
        """Take note of how many of the tokens that were proposed last came true."""


@dataclass(eq=False)
class Writing(ABC):
    """A text while it is written."""

    tokens: list[int]
    """The prompt, from the document marker on, and what was written."""
    draws: np.random.Generator
    """Chooses the tokens, where they are drawn."""
    drafter: Drafter | None = None
    """Proposes tokens of it."""
    padding: int = 0
    """Tokens at the beginning of the prompt that are padding, within the first chunk."""
    start: int = 0
    """Place at which the sequence that the model reads begins, a chunk's."""
    read: int = 0
    """Tokens from the text's beginning that the model has read, or that moved out of the sequence."""
    windows_from: int = 0
    """Place from which on windows within chunks retrieve, rather than chunks alone."""
    found: dict[int, Found] = field(default_factory=dict)
    """What the m tokens that end at a place of the text retrieved, by place."""
    ended: bool = False
    """Whether nothing more is written."""
    proposed: int = 0
    """Draft tokens that were verified."""
    accepted: int = 0
    """Those of them that are in the text."""

    @property
    def unread(self) -> int:
        """Tokens that the model has not read."""
        return len(self.tokens) - self.read

    @abstractmethod
    def ends(self) -> bool:
        """Return whether the text ends with its last token; called once for each new one."""


class _Group(NamedTuple):
    """Texts that the model reads together, and what it remembers of them."""

    texts: list[Writing]
    cache: Cache


class Decoder:
    """Writes texts."""

    def __init__(
        self,
        model: LanguageModel,
        sampling: Sampling,
        retrieve: Retrieve | None,
        *,
        length: int,
        retrieve_every: int | None = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        goes_on: Callable[[bool], bool] = bool,
        padding_in_grid: bool = False,
    ) -> None:
        """Write with `model` on its device.

        Args:
            model: In evaluation mode.
            sampling: How tokens are chosen.
            retrieve: Finds the neighbors of chunks; None for none.
            length: Tokens of a sequence, whole chunks.
            retrieve_every: Tokens from one retrieval to the next, 1 to m (Wang et al. 2023): within a chunk, too, the
                last m tokens retrieve, and what follows attends to that. A prompt is read chunk by chunk, up to the
                last such window in it. None retrieves at the end of each chunk.
            precision: Context of a forward pass.
            goes_on: Told whether a text here is still written, says whether to read another step: ranks must call a
                sharded model as often as each other.
            padding_in_grid: Whether the first chunk of a text begins with its padding.
        """
        self._model, self._sampling, self._retrieve = model, sampling, retrieve
        self._length, self._every = length, retrieve_every or model.chunk_length
        self._precision, self._goes_on, self._padding_in_grid = precision, goes_on, padding_in_grid
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def write(self, texts: Sequence[Writing]) -> None:
        """Write on, in place, until all texts have ended."""
        m = self._model.chunk_length
        for text in texts:
            text.start = text.read = max(0, -(-(len(text.tokens) - self._length) // m)) * m
        groups = self._fresh(text for text in texts if not text.ended)
        last = groups[-1:]
        while self._goes_on(bool(groups)):
            for group in groups:
                while not self._advance(group):  # a prompt may be read in several passes
                    pass
            for texts_that_ended, cache in () if groups else last:
                self._pass([text.tokens[-1:] for text in texts_that_ended], cache)
            last = groups[-1:] or last
            groups = self._regrouped(groups)

    def _fresh(self, texts: Iterable[Writing]) -> list[_Group]:
        """Group texts of which the model has read nothing, by what there is to read: it then needs no padding."""
        groups: dict[int, list[Writing]] = {}
        for text in texts:
            text.windows_from = len(text.tokens) - text.unread % self._model.chunk_length % self._every
            groups.setdefault(text.unread, []).append(text)
        in_grid = self._padding_in_grid
        return [_Group(found, self._model.empty_cache(padding_in_grid=in_grid)) for found in groups.values()]

    def _regrouped(self, groups: list[_Group]) -> list[_Group]:
        """Leave out texts that have ended, move those that are longer than a sequence, and join the others."""
        m, stay, move = self._model.chunk_length, [], []
        for group in groups:
            rows = [row for row, text in enumerate(group.texts) if not text.ended and self._fits(text)]
            move += [text for text in group.texts if not text.ended and not self._fits(text)]
            if rows:
                if len(rows) < len(group.texts):
                    group.cache.select(rows)
                stay.append(_Group([group.texts[row] for row in rows], group.cache))
        for text in move:
            count = len(text.tokens) - text.start
            text.start += max(1, (count - self._length // 2) // m) * m
            text.read = text.start
        if len(stay) > 1:
            texts = [text for group in stay for text in group.texts]
            stay = [_Group(texts, type(stay[0].cache).join([group.cache for group in stay]))]
        return [*stay, *self._fresh(move)]

    def _fits(self, text: Writing) -> bool:
        return len(text.tokens) - text.start <= self._length

    def _advance(self, group: _Group) -> bool:
        """Read some tokens of each text, and add what follows; return whether there was anything to add."""
        texts, cache = group
        known = texts[0].unread  # as of the others
        room = self._room(texts, known)
        draft = self._draft(texts[0], room - known) if len(texts) == 1 else []
        count = min(room, known + len(draft))
        self._search(texts, count)
        hidden = self._pass([[*text.tokens[text.read :], *draft][:count] for text in texts], cache, texts)
        for text in texts:
            text.read += count
        if count < known:
            return False
        self._accept(group, draft, self._model.logits(hidden[:, known - 1 :]))
        return True

    def _accept(self, group: _Group, draft: list[int], logits: Tensor) -> None:
        """Choose what follows, [B, 1 + n, V], as long as it is the draft of n tokens, and forget the rest of that."""
        texts, cache = group
        draws, accepted = [text.draws for text in texts], 0
        for place in range(1 + len(draft)):
            chosen = self._sampling.choose(logits[:, place], draws).tolist()
            for text, token in zip(texts, chosen, strict=True):
                text.tokens.append(token)
                text.ended = text.ends()
            if draft[place : place + 1] != chosen:
                break
            accepted += 1
            if texts[0].ended:
                break
        if draft:
            [text] = texts
            assert text.drafter is not None
            text.drafter.judge(accepted)
            text.proposed, text.accepted = text.proposed + len(draft), text.accepted + accepted
            if accepted < len(draft):
                text.read -= len(draft) - accepted
                cache.truncate(cache.length - len(draft) + accepted)

    def _room(self, texts: Sequence[Writing], certain: int) -> int:
        """Return how many tokens of each text can be read at once, of which the first `certain` are known in all.

        A draft must not complete what retrieves, nor may a cache be cut back over the end of a chunk. A window within a
        chunk ends with the first token that is read at once, and then nothing else is retrieved there.
        """
        m, room = self._model.chunk_length, self._length
        if any(self._is_window(text, text.read - text.start + 1) for text in texts):
            certain = 1
        for text in texts:
            place = text.read - text.start
            room = min(room, self._length - place, m * ((place + certain) // m + 1) - 1 - place)
            windows = (end for end in range(place + 2, place + room + 1) if self._is_window(text, end))
            room = next(windows, place + room + 1) - 1 - place
        return room

    def _is_window(self, text: Writing, end: int) -> bool:
        """Return whether the m tokens of a sequence up to `end` retrieve though they are not one of its chunks."""
        m = self._model.chunk_length
        return end > m and text.start + end >= text.windows_from and end % m > 0 and end % m % self._every == 0

    def _retrieving(self, text: Writing, count: int) -> list[int]:
        """Return the places in a text, within the next `count` tokens to read, at which a retrieval is due."""
        m, place = self._model.chunk_length, text.read - text.start
        return [
            text.start + end
            for end in range(place + 1, place + count + 1)
            if end % m == 0 or self._is_window(text, end)
        ]

    def _draft(self, text: Writing, most: int) -> list[int]:
        if text.drafter is None or most < 1:
            return []
        return list(text.drafter.propose(text.tokens, most))

    def _search(self, texts: Sequence[Writing], count: int) -> None:
        """Retrieve what is due within the next `count` tokens of all texts, in one search."""
        if self._retrieve is None:
            return
        m = self._model.chunk_length
        due = [(text, end) for text in texts for end in self._retrieving(text, count) if end not in text.found]
        if due:
            chunks = [np.array(text.tokens[end - m : end]) for text, end in due]
            for (text, end), found in zip(due, self._retrieve(chunks), strict=True):
                text.found[end] = found
                if text.drafter is not None:
                    rows = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
                    text.drafter.add([row[:length] for row, length in rows if length])

    def _pass(self, fed: Sequence[Sequence[int]], cache: Cache, texts: Sequence[Writing] = ()) -> Tensor:
        """Read the next tokens of each sequence, [B][Q], and the neighbors due there; returns [B, Q, D]."""
        count = len(fed[0])
        found = [[text.found.get(end) for end in self._retrieving(text, count)] for text in texts]
        neighbors, lengths = self._neighbors(found)
        paddings = [text.padding for text in texts]
        padding = torch.tensor(paddings, device=self._device) if not cache.length and any(paddings) else None
        within = any(self._is_window(text, text.read - text.start + 1) for text in texts)
        with self._precision():
            hidden: Tensor = self._model(
                torch.tensor(fed, device=self._device),
                neighbors,
                lengths,
                padding=padding,
                cache=cache,
                windows=[bool(of_text) for of_text in found] if within else None,
            )
        return hidden

    def _neighbors(self, found: Sequence[Sequence[Found | None]]) -> tuple[Tensor | None, Tensor | None]:
        """Return neighbors of texts, [B, C, k, r], and their lengths [B, C, k], 0 where there are none."""
        example = next((one for of_text in found for one in of_text if one is not None), None)
        if example is None:
            return None, None
        shape = len(found), max(map(len, found)), *example.tokens.shape
        neighbors, lengths = np.zeros(shape, np.int64), np.zeros(shape[:3], np.int64)
        for row, of_text in enumerate(found):
            for place, one in enumerate(of_text):
                if one is not None:
                    neighbors[row, place], lengths[row, place] = one.tokens, one.lengths
        return torch.from_numpy(neighbors).to(self._device), torch.from_numpy(lengths).to(self._device)
