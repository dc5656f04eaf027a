"""From a record of a file or a dataset to a document."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retro_lab.corpus.documents import Document, valid_unicode
from retro_lab.errors import CorpusError

NAMED_FIELDS = 20


@dataclass(frozen=True, slots=True)
class RecordFields:
    """Names of the fields that hold a record's text and, if it has one, its id."""

    text: str
    id: str | None = None
    option: str = "text_field"
    """Name of the setting that names the text's field, for messages."""

    def document(self, record: Mapping[str, Any] | str, place: str, source: str) -> Document:
        """Make a document of `record`; a string in its place says why there is none.

        `place` is where the record is, as `file name:row`; it is the id of a document that has no other.

        Raises:
            CorpusError: A field is missing, or holds something that is neither text nor null.
        """
        if isinstance(record, str):
            return Document(place, source, "", problem=record)
        text = _field(record, self.text, self.option, place)
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise CorpusError(
                f"{place}: the field {self.text!r} holds a value of type {type(text).__name__}, not text; "
                f"set corpus.{self.option} to a field that holds text."
            )
        identifier = None if self.id is None else _field(record, self.id, "id_field", place)
        if identifier is None:
            return Document(place, source, text)
        if not isinstance(identifier, str | int):
            raise CorpusError(
                f"{place}: the field {self.id!r} holds a value of type {type(identifier).__name__}; "
                "set corpus.id_field to a field that holds text or whole numbers, or to null."
            )
        return Document(valid_unicode(str(identifier)), source, text)


def _field(record: Mapping[str, Any], name: str, option: str, place: str) -> Any:
    try:
        return record[name]
    except KeyError:
        fields = [valid_unicode(str(field)) for field in record]
        close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
        listed = ", ".join(fields[:NAMED_FIELDS]) + (", ..." if len(fields) > NAMED_FIELDS else "")
        hint = f"did you mean {close[0]!r}?" if close else f"set corpus.{option} to one of them."
        raise CorpusError(f"{place} has no field {name!r} but {listed or 'no field at all'}; {hint}") from None
