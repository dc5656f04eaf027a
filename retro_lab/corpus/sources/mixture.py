"""Several corpora in fixed shares of text, as MassiveText is composed (Borgeaud et al. 2022, Tables 1 and 8)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self, Unpack

from retro_lab.corpus.documents import Document, DocumentSource, SourceSettings, Split, is_sampled
from retro_lab.errors import ConfigurationError


class MixtureSource(DocumentSource):
    """Takes from each source its share of `max_bytes`; a source with less text contributes all of it, once.

    The shares are of text, not of documents. `Document.source` is the source's name in the mixture.
    """

    def __init__(
        self,
        sources: Mapping[str, DocumentSource],
        weights: Mapping[str, float],
        fractions: Mapping[str, float] | None = None,
        **settings: Unpack[SourceSettings],
    ) -> None:
        """Mix `sources`, each with the weight of the same name; a weight of 0 leaves a source out.

        Of a source named in `fractions`, at most that share of the documents is taken, chosen by a hash of their ids,
        so that they come from all over the source (books at 4% in the paper's evaluation database).

        `validation_fraction`, `test_fraction` and `max_document_bytes` replace those of every source; `group_pattern`
        applies to sources without groups of their own. A source with a smaller `max_bytes` of its own contributes no
        more than that.

        Raises:
            ConfigurationError: There is no `max_bytes`, names do not match, no weight is positive, or a fraction is
                out of range.
        """
        super().__init__(**settings)
        if self.max_bytes is None:
            raise ConfigurationError("A mixture needs corpus.max_bytes, of which each source contributes a share.")
        unmatched = sorted(set(sources) ^ set(weights))
        if unmatched:
            raise ConfigurationError(
                f"corpus.sources and corpus.weights of a mixture must have the same names; {', '.join(unmatched)} "
                "is in only one of them."
            )
        if any(not weight >= 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ConfigurationError("corpus.weights of a mixture must not be negative, and not all of them zero.")
        self.fractions = dict(fractions or {})
        for name, fraction in self.fractions.items():
            if name not in sources or not 0 < fraction <= 1:
                raise ConfigurationError(
                    f"corpus.fractions.{name}={fraction} must name a source of the mixture, above 0 and at most 1."
                )
        self.sources = {name: sources[name] for name in sorted(sources)}
        self.weights = {name: float(weights[name]) for name in sorted(weights)}
        total = sum(self.weights.values())
        self._limited = {
            name: source.limited(self, self.max_bytes * self.weights[name] / total / self.fractions.get(name, 1))
            for name, source in self.sources.items()
            if self.weights[name]
        }

    def limited(self, larger: DocumentSource, max_bytes: float) -> Self:
        """Return the same mixture as part of a larger one."""
        part = super().limited(larger, max_bytes)
        return type(self)(
            self.sources,
            self.weights,
            self.fractions,
            validation_fraction=part.validation_fraction,
            test_fraction=part.test_fraction,
            group_pattern=larger.group_pattern if self.group_pattern is None else self.group_pattern,
            max_bytes=part.max_bytes,
            max_document_bytes=part.max_document_bytes,
        )

    def identity(self) -> dict[str, Any]:
        """Return the identity of each source as part of this mixture, in which its limit reflects its weight."""
        return {
            "kind": "mixture",
            "sources": {name: source.identity() for name, source in self._limited.items()},
            "fractions": self.fractions,
        }

    @property
    def is_grouped(self) -> bool:
        """Whether the mixture or any of its sources has groups."""
        return super().is_grouped or any(source.is_grouped for source in self.sources.values())

    @property
    def named_splits(self) -> frozenset[Split]:
        """Splits that any source names."""
        return frozenset().union(*(source.named_splits for source in self._limited.values()))

    def parts(self) -> int:
        """Return the number of parts of all sources together."""
        return sum(source.parts() for source in self._limited.values())

    def read(self, part: int) -> Iterator[tuple[Split, Document]]:
        """Yield the documents of one part of one source."""
        for name, source in self._limited.items():
            if part < source.parts():
                for split, document in source.read(part):
                    if is_sampled(document.id, self.fractions.get(name, 1)):
                        yield split, replace(document, source=name)
                return
            part -= source.parts()
        raise IndexError(f"The mixture has no part {part} beyond its last.")
