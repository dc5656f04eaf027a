"""A document as `retro_lab.evaluation.inspected` puts it together, of text that would do harm if a page obeyed it."""

from retro_lab.evaluation.inspected import FoundChunk, FoundToken, InspectedChunk, InspectedDocument, Token
from retro_lab.runs.examples import Example, Examples, FoundPassage, Passage

HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><img src=x onerror=\"document.title='owned'\">",
    "\"'&amp;</div></article>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "]]>",
    "\0",
    "\ud800",
    "\u202eright to left\u202c",
    "שלום",
    "<style>*{display:none}</style>",
    "<svg/onload=alert(1)>",
    "\n",
    "",
    " café Config",
)
"""Tokens: tags, quotes, comments, templates, control characters, a lone surrogate, text of other directions."""
SHOWN = {"\0": "\\x00", "\ud800": "\\ud800", "\u202eright to left\u202c": "\\u202eright to left\\u202c"}
"""What is shown of those that are not shown as they are."""


def shown(texts: tuple[str, ...] = HOSTILE) -> str:
    """Return the text that a reader sees."""
    return "".join(SHOWN.get(text, text) for text in texts)


def hostile_document(number: int = 7) -> InspectedDocument:
    """Return a document of three chunks with three neighbors each, and every strength of every color."""
    tokens = tuple(
        Token(text, 2.0, 2.0 - (place - len(HOSTILE) // 2) / 10, place % 7) for place, text in enumerate(HOSTILE)
    )
    unscored = (Token("", None, None, 0), Token("context", None, None, 0), Token("end", 0.5, 0.25, 2))
    found = tuple(
        FoundChunk(
            chunk=rank,
            document=f"{HOSTILE[0]} {rank}",
            distance=rank / 4,
            neighbor=tuple(FoundToken(text, place % 7) for place, text in enumerate(HOSTILE)),
            continuation=(FoundToken(" and on", 0), FoundToken(" config", 9)),
        )
        for rank in range(3)
    )
    return InspectedDocument(
        number=number,
        name=HOSTILE[1],
        chunks=(
            InspectedChunk(chunk=20, tokens=unscored, neighbors=()),
            InspectedChunk(chunk=21, tokens=tokens, neighbors=found),
            InspectedChunk(chunk=22, tokens=tokens[-1:], neighbors=()),
        ),
        total=9,
        off=1.5,
        on=1.25,
    )


def hostile_examples() -> Examples:
    """Return what scoring would keep of such text."""
    text = "".join(HOSTILE[:6])
    passage = {"chunk": 1, "document": HOSTILE[0], "text": "\n" + text, "continuation": HOSTILE[1]}
    neighbors = (FoundPassage(**passage, distance=0.125), FoundPassage(**passage, distance=2.0))
    return Examples(
        text="test split of <b>mine</b>",
        database=HOSTILE[0],
        examples=(
            Example(passage=Passage(**passage), neighbors=neighbors),
            Example(passage=Passage(**passage), neighbors=()),
        ),
    )
