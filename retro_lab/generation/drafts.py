"""Neighbors as drafts: what follows the last tokens of a text where they occur in what the text retrieved.

    neighbor    a b c d e f g h          "c d" occurs in it, so e f g are proposed
    text        p q c d                  and the model reads them in one pass: d e f g

A text that copies from its neighbors is then written several tokens at a pass. It remains the text that it would have
been: `retro_lab.generation.decoder` keeps a proposed token only where it is the one that is chosen anyway. For drawn
tokens that is rejection sampling. A proposal is certain of its token x, so x must be kept with its probability p(x),
and otherwise a token be drawn from p without x. To draw from p and compare with x does just that, and uses a text's
random numbers as if there were no drafts.

A token more in a pass costs less than a pass of its own, but it costs. As many tokens are proposed as are expected to
pay: the more, the longer the match, and the more, the more of the text's earlier proposals came true. On one processor
core, a pass over n tokens takes this many times as long as one over a single token:

    tokens                               2      4      8     16     32
    0.5M (the calls cost the most)    1.01   1.12   1.15   1.26   1.38
    12M (d = 512, two layers)         1.42   1.44   1.43   1.91   2.43
    172M                              1.75   1.57   1.79   2.28   3.24

Products of a matrix and a vector are done by other code than those of two matrices, so that the second token is the
dearest.
"""

import math
from collections import deque
from collections.abc import Sequence

SHORTEST, LONGEST = 2, 16
"""Tokens of a match. One token matches too much by chance; to tell longer matches apart made no text faster."""
REMEMBERED = 4
"""Places at which a match is looked for, of all in neighbors that begin alike: the newest."""
FIRST, EACH = 0.5, 0.05
"""What a proposal and each of its tokens are taken to cost, as shares of a pass over one token. They were chosen by
replaying texts at the three measured costs: a larger model gains up to a tenth by `FIRST`, the smallest loses 2%."""
DOUBT = 4.0
"""Verified tokens after which these say as much about the next proposal as the length of its match does."""


class Drafter:
    """Proposes the next tokens of one text."""

    def __init__(self, *, own_text: bool = True) -> None:
        """Start without a neighbor.

        Args:
            own_text: Whether to look for the last tokens in the earlier text, too; where both hold equally long
                matches, the neighbors come first.
        """
        self._own_text = own_text
        self._neighbors: list[list[int]] = []
        self._added: set[tuple[int, ...]] = set()
        self._places: dict[tuple[int, int], deque[tuple[int, int]]] = {}
        """Of each two tokens, the neighbors and the places after them."""
        self._own_places: dict[tuple[int, int], int] = {}
        """Of each two tokens, the last place in the text after them."""
        self._known = SHORTEST
        """Places of the text up to here are in `_own_places`."""
        self._kept, self._tried = [0] * (LONGEST + 1), [0] * (LONGEST + 1)
        """By length of the match: tokens that came true, and those and the first wrong ones."""
        self._match = 0
        self._proposed: Sequence[int] = ()

    def add(self, neighbors: Sequence[Sequence[int]]) -> None:
        """Propose from these neighbors, too.

        Args:
            neighbors: Tokens of each, with those of its continuation, nearest first.
        """
        for neighbor in reversed(neighbors):  # the place that is remembered last is looked at first
            tokens = [*neighbor]
            if (content := tuple(tokens)) in self._added:  # close chunks retrieve the same
                continue
            self._added.add(content)
            for place in range(SHORTEST, len(tokens)):
                pair = tokens[place - 2], tokens[place - 1]
                self._places.setdefault(pair, deque(maxlen=REMEMBERED)).append((len(self._neighbors), place))
            self._neighbors.append(tokens)

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """Guess the next tokens; `judge` must be told about them before the next call.

        Args:
            tokens: Of the text so far, at least those of the last call.
            most: Tokens that can be verified.

        Returns:
            At most `most` tokens; none where none is expected to pay.
        """
        self._match, source, place = self._longest_match(tokens)
        if most < 1 or not self._match:
            self._proposed = ()
            return self._proposed
        count = self._worthwhile(self._match, most)
        proposed = source[place : place + count]
        if source is tokens and place + count > len(tokens):  # the text repeats itself, and goes on to do so
            period = source[place:]
            proposed = [period[index % len(period)] for index in range(count)]
        self._proposed = proposed
        return proposed

    def judge(self, accepted: int) -> None:
        """Learn how many of the tokens that were proposed last came true."""
        self._kept[self._match] += accepted
        self._tried[self._match] += min(accepted + 1, len(self._proposed))

    def _longest_match(self, tokens: Sequence[int]) -> tuple[int, Sequence[int], int]:
        """Return how many last tokens occur elsewhere, in which tokens, and the place after them; 0 for none."""
        longest: tuple[int, Sequence[int], int] = (0, (), 0)
        if len(tokens) < SHORTEST:
            return longest
        pair = tokens[-2], tokens[-1]
        for number, place in reversed(self._places.get(pair, ())):
            length = _match(self._neighbors[number], place, tokens)
            if length > longest[0]:
                longest = length, self._neighbors[number], place
                if length == LONGEST:
                    return longest
        if self._own_text:
            for place in range(self._known, len(tokens)):
                self._own_places[tokens[place - 2], tokens[place - 1]] = place
            self._known = max(self._known, len(tokens))
            if (own := self._own_places.get(pair)) is not None:
                length = _match(tokens, own, tokens)
                if length > longest[0]:
                    longest = length, tokens, own
        return longest

    def _worthwhile(self, match: int, most: int) -> int:
        """Return how many tokens to propose: as long as the next is right often enough, if all of them pay."""
        # In code that two small models wrote, what followed a match of n tokens was right about 1 - 1/n of the time.
        right = (self._kept[match] + DOUBT * (1 - 1 / match)) / (self._tried[match] + DOUBT)
        count = min(most, int(math.log(EACH) / math.log(right)))  # the last is right with probability EACH or more
        accepted = right * (1 - right**count) / (1 - right)
        return count if accepted > FIRST + EACH * count else 0


def _match(source: Sequence[int], place: int, tokens: Sequence[int]) -> int:
    """Return how many tokens before a place are the last of a text, `SHORTEST` of which are known to be."""
    most, length = min(place, len(tokens), LONGEST), SHORTEST
    while length < most and source[place - length - 1] == tokens[-length - 1]:
        length += 1
    return length
