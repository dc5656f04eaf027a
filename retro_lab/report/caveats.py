"""Caveats on a report's page: which comparisons are unequal, and what was not measured."""

from collections.abc import Iterable, Sequence

from retro_lab.report import formats
from retro_lab.report.comparison import ON, Gain, Scored, cell_baseline, cell_scores, comparable, flops_ratio, gain
from retro_lab.report.leakage import Leakage, copy_sentences, leakage_sentences
from retro_lab.report.parts import part_caveats
from retro_lab.runs.records import Evaluation, ModelRecord, RunRecord
from retro_lab.runs.sweeps import SweepRecord

FEW_DOCUMENTS = 30
"""Below this many, percentiles of a bootstrap lie too close together."""
EQUAL_COMPUTE = 0.005
"""Ratios of FLOPs this close to 1 are not worth a sentence."""
OVERLAP = (
    "This table does not tell how much of a gain comes from text that the database has word for word (Borgeaud et al. "
    "2022, Sec. 2.6): the pages of the cells have the scores by overlap."
)


def run_caveats(run: RunRecord, leakage: Sequence[Leakage]) -> tuple[str, ...]:
    """Return the caveats on this run's numbers, the most specific first; `leakage` is what was measured of it."""
    caveats = [
        f"The {name} has no result yet: it is still training, or its training stopped." for name in run.unfinished
    ]
    caveats += [f"The training of the {model.model} was {model.stop}." for model in run.models if model.stop]
    if run.baseline and run.retro:
        caveats += _inequalities(run.baseline, run.retro, run.longer_baseline)
        on, reference = Scored.of(run, run.retro, run.retro.k), Scored.of(run, run.baseline)
        if on and (difference := gain(on, reference)):
            caveats += _intervals([difference], on.entry.documents)
    elif run.retro and "baseline" not in run.unfinished:
        caveats.append("No baseline was trained in this run, so no gain can be stated.")
    if run.retro and run.retro.evaluation(run.retro.k) is None:
        caveats.append(f"RETRO was not evaluated with the k = {run.retro.k} neighbors it was trained with.")
    caveats += part_caveats(run.retro.evaluations) if run.retro else []
    caveats += leakage_sentences(leakage) + copy_sentences(leakage)
    caveats += _lossy_tokenizers(run.models)
    seeds = ", ".join(str(seed) for seed in sorted({model.seed for model in run.models}))
    caveats.append(f"One training run per model (seed {seeds}): the spread between seeds was not measured.")
    return tuple(caveats)


def sweep_caveats(sweep: SweepRecord) -> tuple[str, ...]:
    """Return the caveats on this sweep's numbers."""
    caveats = []
    undone = len(sweep.cells) - len(sweep.with_status("done"))
    if undone:
        caveats.append(f"{undone} of {len(sweep.cells)} cells have no complete result.")
    retros = [cell for cell in sweep.cells if cell.run and cell.run.retro]
    if any(cell_baseline(sweep, cell) is None for cell in retros):
        caveats.append("Cells without a gain lack a baseline of the same size and corpus to compare with.")
    gains, documents = [], []
    for cell in retros:
        reference, _, on = cell_scores(sweep, cell)
        if on and (difference := gain(on, reference)):
            gains.append(difference)
            documents.append(on.entry.documents)
    if gains:
        caveats += _intervals(gains, min(documents))
    caveats += _lossy_tokenizers([model for cell in sweep.cells if cell.run for model in cell.run.models])
    if retros:
        caveats.append(OVERLAP)
    if "seed" not in sweep.axes:
        caveats.append("One training run per model: the spread between seeds was not measured.")
    return tuple(caveats)


def _intervals(gains: Sequence[Gain], documents: int) -> list[str]:
    """Say what the intervals of gains are worth, and which gains may be none.

    Args:
        gains: What is stated, one or more.
        documents: Of the text; the fewest, if there are several.
    """
    if any(difference.interval is None for difference in gains):
        return ["The scored text is a single document, so how sure the gain is cannot be told: it has no interval."]
    found = [
        f"The intervals come from {documents:,} documents, drawn again with replacement: they say how far other "
        "documents like these would move a gain, and nothing of other seeds of the training."
    ]
    if documents < FEW_DOCUMENTS:
        found.append(f"Intervals from fewer than {FEW_DOCUMENTS} documents are too narrow.")
    doubtful = [gain for gain in gains if gain.interval and gain.interval.low <= 0 <= gain.interval.high]
    if doubtful and len(gains) == 1:
        found.append(f"The gain of {ON} is not distinguishable from zero: its 95% interval contains zero.")
    elif doubtful:
        found.append(
            f"{len(doubtful)} of {len(gains)} gains are not distinguishable from zero: their 95% intervals contain "
            "zero."
        )
    return found


def _lossy_tokenizers(models: Iterable[ModelRecord]) -> list[str]:
    """Warn about bits per byte if the tokenizer loses text; only the worst case is shown."""
    lossy = [entry for model in models for entry in model.evaluations if entry.text.altered_documents]
    if not lossy:
        return []
    worst = max(lossy, key=lambda entry: entry.text.altered_documents / entry.documents)
    return [
        f"The tokenizer does not reproduce the text of {worst.text.altered_documents:,} of {worst.documents:,} "
        f"documents ({worst.text.description}): bits per byte are too low, and cannot be compared with those of other "
        "tokenizers."
    ]


def _inequalities(baseline: ModelRecord, retro: ModelRecord, longer: ModelRecord | None) -> list[str]:
    """Describe how the two models differ besides retrieval."""
    found = []
    extra = retro.parameters.total - baseline.parameters.total
    if extra > 0:
        percent = 100 * extra / max(baseline.parameters.total, 1)
        found.append(f"RETRO has {formats.count(extra)} ({percent:.0f}%) more parameters than its baseline.")
    scored = retro.evaluation(retro.k) or retro.evaluation(0)
    reference = baseline.evaluation(0)
    times = flops_ratio(scored, reference)
    if not baseline.is_trained:
        found.append(
            "The baseline is the base model, which was not trained on this corpus; RETRO[Off] predicts the same, and "
            "RETRO[On] has also learned from the corpus."
        )
        return [*found, *_scored_apart(scored, reference)]
    training = retro.flops / baseline.flops
    if times and max(abs(times - 1), abs(training - 1)) > EQUAL_COMPUTE:
        found.append(
            f"RETRO took {formats.ratio(training)} times the FLOPs of its baseline to train, and takes "
            f"{formats.ratio(times)} times as many for each byte that it scores"
            + (": no baseline of equal compute was trained." if longer is None else ".")
        )
    if baseline.tokens != retro.tokens:
        trained = f"{formats.count(baseline.tokens)} tokens and RETRO on {formats.count(retro.tokens)}"
        found.append(f"The baseline was trained on {trained}.")
    return [*found, *_scored_apart(scored, reference)]


def _scored_apart(scored: Evaluation | None, reference: Evaluation | None) -> list[str]:
    if scored and reference and not comparable(scored, reference):
        return ["The two models were not scored on the same held-out text, so no gain is stated."]
    return []
