"""Documents from the rows of a file or a dataset."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from retro_lab.corpus.documents import NO_TEXT_FIELD, Document, valid_unicode
from retro_lab.errors import ConfigurationError, CorpusError

NAMED_FIELDS = 20
ROWS_WITHOUT = 1000
"""Stop reading after this many first records if none of them has the text field."""
PARQUET_ROWS = 256
"""Rows decoded at a time; the reader's own choice is a whole row group."""
Item = TypeVar("Item")


def enumerate_rows(items: Iterable[Item], name: str) -> Iterator[tuple[int, Item]]:
    """Number `items` from 1, and say where in the file `name` their reader failed.

    Raises:
        CorpusError: The reader raised anything.
    """
    number = 0
    iterator = iter(items)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # codecs and formats raise errors of many types for damaged data
            lines = str(error).splitlines() or [type(error).__name__]
            raise CorpusError(f"{name} cannot be read after row {number}: {lines[0]}; replace or repair it.") from error
        number += 1
        yield number, item


class MissingFieldError(CorpusError):
    """A record that lacks the field `field`."""

    def __init__(self, message: str, field: str) -> None:
        """Keep the name of `field`."""
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class RecordFields:
    """Names of the fields that hold a record's text and, if it has them, its id and its group."""

    text: str
    id: str | None = None
    group: str | None = None
    option: str = "text_field"
    """Setting that names the text field, for messages."""

    @property
    def names(self) -> list[str]:
        """Names of all fields."""
        return [name for name in (self.text, self.id, self.group) if name is not None]

    def are_in(self, record: Mapping[str, Any]) -> bool:
        """Return whether `record` has all of the fields."""
        try:
            return all(_value(record, name) or True for name in self.names)
        except KeyError:
            return False

    def documents(
        self,
        records: Iterable[tuple[str, Mapping[str, Any] | str]],
        source: str,
        elsewhere: Callable[[], bool] = lambda: False,
    ) -> Iterator[Document]:
        """Make a document of each of the `records` of one part, which come with their locations.

        A record without the text field becomes a document that cannot be used. If no record of the part has the field,
        its name is wrong, unless `elsewhere` says that records of other parts have it.

        Raises:
            CorpusError: As in `document`; also if no record has the text field, or none of the first 1,000.
        """
        without: MissingFieldError | None = None
        known, count = False, 0
        for place, record in records:
            try:
                document = self.document(record, place, source)
                known = known or not isinstance(record, str)
            except MissingFieldError as error:
                if error.field != self.text:
                    raise
                without, count = without or error, count + 1
                if not known and count == ROWS_WITHOUT:
                    raise without from None
                document = Document(place, source, "", problem=NO_TEXT_FIELD)
            yield document
        if without and not known and not elsewhere():
            raise without

    def document(self, record: Mapping[str, Any] | str, place: str, source: str) -> Document:
        """Make a document of `record`, or of a string that says why there is none.

        `place` is the record's location, `file name:row`, which is the id of a document without an id field.

        Raises:
            CorpusError: A field is missing, or its value is neither text nor null.
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
        identifier = _name_in(record, self.id, "id_field", place)
        group = _name_in(record, self.group, "group_field", place) or ""
        return Document(place if identifier is None else identifier, source, text, group=group)


def check_groups(pattern: str | None, field: str | None) -> None:
    """Refuse a source whose groups are named by both a pattern and a field.

    Raises:
        ConfigurationError: Both are given.
    """
    if pattern is not None and field is not None:
        raise ConfigurationError(
            f"corpus.group_pattern={pattern} and corpus.group_field={field} both name groups; set one of them to null."
        )


def _name_in(record: Mapping[str, Any], name: str | None, option: str, place: str) -> str | None:
    """Return the value of the field `name` of `record` as text; None if no field is named, or its value is null."""
    value = None if name is None else _field(record, name, option, place)
    if value is not None and not isinstance(value, str | int):
        raise CorpusError(
            f"{place}: the field {name!r} holds a value of type {type(value).__name__}; "
            f"set corpus.{option} to a field that holds text or whole numbers, or to null."
        )
    return None if value is None else valid_unicode(str(value))


def _value(record: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field or, with dots in its name, of a nested field.

    Raises:
        KeyError: There is none.
    """
    if name in record:
        return record[name]
    value: Any = record
    for piece in name.split("."):
        if value is not None:  # a null field has no fields
            if not isinstance(value, Mapping):
                raise KeyError(name)
            value = value[piece]
    return value


def _names(record: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of a record's fields, each followed by those of its nested fields."""
    for key, value in record.items():
        yield valid_unicode(f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")


def _field(record: Mapping[str, Any], name: str, option: str, place: str) -> Any:
    try:
        return _value(record, name)
    except KeyError:
        fields = list(_names(record))
        close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
        listed = ", ".join(fields[:NAMED_FIELDS]) + (", ..." if len(fields) > NAMED_FIELDS else "")
        hint = f"did you mean {close[0]!r}?" if close else f"set corpus.{option} to one of them."
        message = f"{place} has no field {name!r} but {listed or 'no field at all'}; {hint}"
        raise MissingFieldError(message, name) from None
