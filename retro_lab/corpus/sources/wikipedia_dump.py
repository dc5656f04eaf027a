"""Named articles of a Wikipedia dump, cleaned as in the paper (Borgeaud et al. 2022, Table 9 and the text above it).

A dump is MediaWiki's XML, such as `enwiki-20211001-pages-articles.xml.bz2` of https://dumps.wikimedia.org. It is read
as a stream and never held in memory.

What the paper does besides, and this module does not: it leaves out articles with much text that templates bring, which
it finds by their overlap with training text (Sec. 2.6).
"""

import contextlib
import glob
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Unpack
from xml.etree import ElementTree

import zstandard

from retro_lab.artifacts.fingerprint import file_checksum
from retro_lab.corpus.documents import Document, DocumentSource, SourceSettings, Split
from retro_lab.corpus.sources.compression import DECOMPRESSORS, WholeStreams
from retro_lab.corpus.sources.local_files import COMPRESSIONS, readable
from retro_lab.errors import ConfigurationError, CorpusError

DROPPED_SECTIONS = {
    "references", "external links", "sources", "further reading", "see also", "citations", "note",
}  # fmt: skip
DROPPED_TEMPLATES = {
    "reflist", "notelist", "notelist-ua", "notelist-lr", "notelist-ur", "notelist-lg",
}  # fmt: skip
DROPPED_TAGS = {"ref", "table"}
ARTICLES = "0"
"""The namespace of articles."""


class WikipediaDumpSource(DocumentSource):
    """Articles of a dump by title, all of them to be scored; a document's id is its title."""

    def __init__(self, path: str, titles: Sequence[str], **settings: Unpack[SourceSettings]) -> None:
        """Read the articles with these `titles` in the files of a dump.

        Args:
            path: A file, or a glob pattern of the files that a dump consists of; each a part.
            titles: Titles as Wikipedia shows them.
            **settings: Those of every source; nothing is held out, as everything is.

        Raises:
            ConfigurationError: No title is given.
        """
        super().__init__(**settings)
        if not titles:
            raise ConfigurationError("corpus.titles names no article.")
        self.path, self.titles = path, list(titles)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The test split, which has all articles."""
        return ("test",)

    @property
    def named_splits(self) -> frozenset[Split]:
        """The test split."""
        return frozenset({"test"})

    def identity(self) -> dict[str, Any]:
        """Return titles, cleaning, and the name, size and SHA-256 of every file."""
        return {
            "kind": "wikipedia_dump",
            "titles": self.titles,
            "cleaning": 1,
            "max_bytes": self.max_bytes,
            "group_pattern": self.group_pattern,
            "files": self._facts,
        }

    @cached_property
    def _facts(self) -> dict[str, dict[str, Any]]:
        facts = {}
        for path in self._files:
            with readable(str(path)):
                facts[path.name] = {"size": path.stat().st_size, "sha256": file_checksum(path)}
        return facts

    @cached_property
    def _files(self) -> list[Path]:
        files = [Path(name) for name in sorted(glob.glob(str(Path(self.path).expanduser()))) if Path(name).is_file()]
        if not files:
            raise CorpusError(
                f"corpus.path={self.path} names no file; name a dump of Wikipedia, such as "
                "enwiki-20211001-pages-articles.xml.bz2 of https://dumps.wikimedia.org."
            )
        return files

    def parts(self) -> int:
        """Return the number of files.

        Raises:
            CorpusError: There are none.
        """
        return len(self._files)

    def read(self, part: int) -> Iterator[tuple[Split, Document]]:
        """Yield the named articles of one file, in its order, until all are found.

        If the dump is one file, titles that it does not have are documents that cannot be used.

        Raises:
            CorpusError: The file is damaged, or is not a dump.
            ConfigurationError: The library that parses the markup is not installed.
        """
        file, wanted = self._files[part], set(self.titles)
        with _opened(file) as stream:
            for title, text in _articles(stream, file.name):
                if title in wanted:
                    wanted.remove(title)
                    yield self._placed(Document(title, "wikipedia_dump", clean(title, text)), "test")
                if not wanted:
                    return
        if len(self._files) == 1:
            for title in self.titles:
                if title in wanted:
                    yield "test", Document(title, "wikipedia_dump", "", problem="not in the dump")


def clean(title: str, markup: str) -> str:
    """Return the text of an article: its title and sections, with an empty line between them.

    Sections without prose of their own, such as references, are dropped, and so are footnotes, tables, pictures and the
    templates that list footnotes. Other links leave their words.

    Raises:
        ConfigurationError: mwparserfromhell is not installed.
    """
    try:
        import mwparserfromhell
    except ImportError as error:
        raise ConfigurationError(
            "Cleaning an article of a Wikipedia dump needs mwparserfromhell; install it with: "
            "pip install 'retro_lab[wikipedia]'"
        ) from error
    sections = []
    for section in mwparserfromhell.parse(markup).get_sections(flat=True):
        headings = section.filter_headings()
        if headings and str(headings[0].title).strip().casefold() in DROPPED_SECTIONS:
            continue
        dropped = [
            *(link for link in section.filter_wikilinks() if _is_media(str(link.title))),
            *(found for found in section.filter_templates() if found.name.strip().casefold() in DROPPED_TEMPLATES),
            *(found for found in section.filter_tags() if str(found.tag).casefold() in DROPPED_TAGS),
        ]
        for node in dropped:
            _remove(section, node)
        text = section.strip_code().strip()
        if text:
            sections.append(text)
    return "\n\n".join([title, *sections])


def _is_media(title: str) -> bool:
    """Tell whether a link shows a file; the words of other links are part of the text."""
    return title.strip().casefold().startswith(("file:", "image:", "media:"))


def _remove(section: Any, node: Any) -> None:
    # A node within one that is gone is gone as well.
    with contextlib.suppress(ValueError):
        section.remove(node)


def _articles(stream: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yield title and markup of each article, without redirects.

    Raises:
        CorpusError: The file is damaged, or is not a dump.
    """
    pages = 0
    try:
        parser = ElementTree.iterparse(stream, ("start", "end"))
        _, root = next(parser)
        for event, element in parser:
            if event == "start" or _tag(element) != "page":
                continue
            pages += 1
            values = {_tag(child): child for child in element.iter()}
            if values["ns"].text == ARTICLES and "redirect" not in values:
                yield values["title"].text or "", values["text"].text or ""
            root.clear()  # pages that were read would stay its children
    except (ElementTree.ParseError, EOFError, OSError, ValueError, KeyError, StopIteration, zlib.error, lzma.LZMAError,
            zstandard.ZstdError) as error:  # fmt: skip
        raise CorpusError(
            f"{name} cannot be read as a dump of Wikipedia after page {pages} ({error}); name MediaWiki's XML of "
            "articles, whole."
        ) from error
    if not pages:
        raise CorpusError(f"{name} has no page; name MediaWiki's XML of articles.")


def _tag(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace, which differs between versions of the format."""
    return element.tag.rpartition("}")[2]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with readable(str(path)), path.open("rb") as raw:
        compression = COMPRESSIONS.get(path.suffix)
        if compression is None:
            yield raw
        else:
            yield io.BufferedReader(WholeStreams(raw, DECOMPRESSORS[compression]))
