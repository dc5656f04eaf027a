"""Caveats on a report's page: which comparisons are unequal, and what was not measured."""

from collections.abc import Iterable

from retro_lab.report import formats
from retro_lab.report.comparison import cell_baseline, gain
from retro_lab.runs.records import ModelRecord, RunRecord
from retro_lab.runs.sweeps import SweepRecord

OVERLAP = (
    "Text that held-out documents share with training documents and the database was not removed: part of RETRO[On]'s "
    "gain may come from copied text (Borgeaud et al. 2022, Sec. 2.6)."
)


def run_caveats(run: RunRecord) -> tuple[str, ...]:
    """Return the caveats on this run's numbers, the most specific first."""
    caveats = [
        f"The {name} has no result yet: it is still training, or its training stopped." for name in run.unfinished
    ]
    caveats += [f"The training of the {model.model} was {model.stop}." for model in run.models if model.stop]
    if run.baseline and run.retro:
        caveats += _inequalities(run.baseline, run.retro)
    elif run.retro and "baseline" not in run.unfinished:
        caveats.append("No baseline was trained in this run, so no gain can be stated.")
    if run.retro and run.retro.evaluation(run.retro.k) is None:
        caveats.append(f"RETRO was not evaluated with the k = {run.retro.k} neighbors it was trained with.")
    caveats += _lossy_tokenizers(run.models)
    if run.retro:
        caveats.append(OVERLAP)
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
    caveats += _lossy_tokenizers([model for cell in sweep.cells if cell.run for model in cell.run.models])
    if retros:
        caveats.append(OVERLAP)
    if "seed" not in sweep.axes:
        caveats.append("One training run per model: the spread between seeds was not measured.")
    return tuple(caveats)


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


def _inequalities(baseline: ModelRecord, retro: ModelRecord) -> list[str]:
    """Describe how the two models differ besides retrieval."""
    found = []
    extra = retro.parameters.total - baseline.parameters.total
    if extra > 0:
        percent = 100 * extra / max(baseline.parameters.total, 1)
        found.append(f"RETRO has {formats.count(extra)} ({percent:.0f}%) more parameters than its baseline.")
    if baseline.tokens != retro.tokens:
        trained = f"{formats.count(baseline.tokens)} tokens and RETRO on {formats.count(retro.tokens)}"
        found.append(f"The baseline was trained on {trained}.")
    scored = retro.evaluation(retro.k) or retro.evaluation(0)
    reference = baseline.evaluation(0)
    if scored and reference and gain(scored, reference) is None:
        found.append("The two models were not scored on the same held-out text, so no gain is stated.")
    return found
