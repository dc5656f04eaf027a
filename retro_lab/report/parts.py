"""Scores with parts of a database and with filters: their names, their means over seeds, and what they are worth."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from retro_lab.report import formats
from retro_lab.runs.records import Evaluation, Retrieved

FRACTION_NOTE = "A share of the database: its first documents, found by a search of them alone."
RANDOM_NOTE = (
    "At random: each chunk or document of the database is kept with this probability; the mean over seeds, and in "
    "parentheses the lowest and the highest score."
)
FILTER_NOTE = (
    "Filter: without the stored neighbors that it drops (evaluation.filters); the next nearest take their places."
)


def grouped(entries: Iterable[Evaluation]) -> list[tuple[Evaluation, ...]]:
    """Put the scores of one text and one k with random parts together that differ in their seeds alone."""
    groups = defaultdict[object, list[Evaluation]](list)
    for entry in entries:
        found = entry.retrieved
        is_random = found is not None and found.seed is not None
        key = (found.source, found.database.rpartition(", seed ")[0]) if found and is_random else entry
        groups[key].append(entry)
    return [tuple(group) for group in groups.values()]


def mean(entries: tuple[Evaluation, ...]) -> Evaluation:
    """Return the mean of scores on the same text; the mean of a perplexity is that of its logarithm."""
    count = len(entries)
    return replace(
        entries[0],
        bits_per_byte=math.fsum(entry.bits_per_byte for entry in entries) / count,
        perplexity=math.exp(math.fsum(math.log(entry.perplexity) for entry in entries) / count),
    )


def part_name(entries: tuple[Evaluation, ...]) -> str:
    """Say what was retrieved from, in a few words, of scores that differ in their seeds alone."""
    found = entries[0].retrieved
    assert found is not None
    if found.filter is not None:
        return f"filter {found.filter}"
    share = f"{100 * found.share:.3g}%"
    if found.seed is None:
        return f"{share} of the database"
    of_documents = " of the documents" if found.unit == "document" else ""
    seeds = f"seed {found.seed}" if len(entries) == 1 else f"{len(entries)} seeds"
    return f"{share}{of_documents} at random, {seeds}"


def part_notes(found: Iterable[Retrieved]) -> tuple[str, ...]:
    """Explain the kinds of parts and filters that there are."""
    parts = [each for each in found if not each.is_whole]
    kinds = (
        (FRACTION_NOTE, any(each.seed is None and each.filter is None for each in parts)),
        (RANDOM_NOTE, any(each.seed is not None for each in parts)),
        (FILTER_NOTE, any(each.filter is not None for each in parts)),
    )
    return tuple(note for note, there in kinds if there)


def part_caveats(entries: Iterable[Evaluation]) -> list[str]:
    """Say where the stored neighbors did not suffice, so that a score is not that of a search."""
    said = []
    incomplete = (entry for entry in entries if entry.retrieved and entry.retrieved.complete < 1)
    by_text = defaultdict[str, list[Evaluation]](list)
    for entry in incomplete:
        by_text[entry.text.name].append(entry)
    for text, found in by_text.items():
        for group in grouped(found):
            retrieved = [entry.retrieved for entry in group if entry.retrieved]
            least = formats.share(min(each.complete for each in retrieved))
            above = max((each.complete_above for each in retrieved if each.complete_above is not None), default=None)
            enough = f" Shares above {above:.3g} are complete." if above is not None else ""
            said.append(
                f"{text}, {part_name(group)}: k = {group[0].k} of the stored neighbors were left for {least} of the "
                f"chunks; the others read fewer than a search would find (raise retrieval.stored).{enough}"
            )
    return said
