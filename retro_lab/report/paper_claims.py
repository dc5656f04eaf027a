"""What the paper, and later ones, say of each experiment: the claims that a sweep is held against.

Sections, tables and figures are those of Borgeaud et al. 2022 unless another paper is named.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from retro_lab.report.claims import Claim, Comparison, Term
from retro_lab.report.comparison import Scored, cell_scores, comparable
from retro_lab.report.leakage import ALPHAS
from retro_lab.runs.records import ScoredText
from retro_lab.runs.sweeps import Cell, SweepRecord

AS_GOOD = 0.01
"""Share of the baseline's bits per byte by which a model that is as good as it may be worse."""
KEPT = 0.5
"""Share of the smallest model's gain that the largest one has at least if gains do not fall with size."""
FEW, MANY = 1, 10
"""Neighbors in evaluation between which all models of the paper improve."""
VARIANT = "variant"
RETRO, RETROFIT, NO_RETRIEVAL = "retro", "retrofit", "no_retrieval"
"""Values of the axis `VARIANT`."""


def paper_claims(sweep: SweepRecord) -> tuple[Claim, ...]:
    """Return what papers say of the experiment that a sweep's file names; nothing of a sweep of one's own."""
    names = {cell.overrides.get("sweep", "") for cell in sweep.cells}
    return tuple(claim for sweeps, claims in CLAIMS if names & set(sweeps) for claim in claims)


def _on(cell: Cell, text: ScoredText | None = None, k: int | None = None) -> Scored | None:
    """Return what a cell's RETRO scores with k neighbors, by default those of its training."""
    retro = cell.run.retro if cell.run else None
    return Scored.of(cell.run, retro, retro.k if k is None else k, text) if retro else None


def _baseline(sweep: SweepRecord, cell: Cell, text: ScoredText | None = None) -> Scored | None:
    return cell_scores(sweep, cell, text)[0]


def _name(sweep: SweepRecord, cell: Cell, *more: str) -> str:
    named = (f"{axis}={cell.overrides.get(axis)}" for axis in sweep.axes)
    return ", ".join([*named, *more])


def _better(where: str, better: Scored | None, worse: Scored | None, margin: float = 0.0) -> Comparison:
    if better is None or worse is None or not comparable(better.entry, worse.entry):
        return Comparison(where, ())
    return Comparison(where, (Term(1, worse), Term(-1, better)), margin)


def _from_scratch(sweep: SweepRecord) -> list[Cell]:
    return [cell for cell in sweep.cells if cell.overrides.get(VARIANT, RETRO) == RETRO]


def _texts(cell: Cell) -> tuple[ScoredText, ...]:
    return cell.run.retro.texts if cell.run and cell.run.retro else ()


def _on_over_baseline(sweep: SweepRecord) -> Iterator[Comparison]:
    for cell in _from_scratch(sweep):
        yield _better(_name(sweep, cell), _on(cell), _baseline(sweep, cell))


def _on_over_baseline_on_others(sweep: SweepRecord) -> Iterator[Comparison]:
    for cell in _from_scratch(sweep):
        for text in _texts(cell)[1:]:
            yield _better(_name(sweep, cell, text.name), _on(cell, text), _baseline(sweep, cell, text))


def _off_as_good(sweep: SweepRecord) -> Iterator[Comparison]:
    for cell in _from_scratch(sweep):
        baseline = _baseline(sweep, cell)
        margin = AS_GOOD * baseline.entry.bits_per_byte if baseline else 0.0
        yield _better(_name(sweep, cell), _on(cell, k=0), baseline, margin)


def _gain_is_kept(sweep: SweepRecord) -> Iterator[Comparison]:
    cells = _from_scratch(sweep)
    trained = [cell for cell in cells if cell.run and cell.run.retro]
    if len(cells) < 2 or "size" not in sweep.axes:
        return
    trained.sort(key=lambda cell: cell.run.retro.parameters.non_embedding if cell.run and cell.run.retro else 0)
    terms: list[Term] = []
    for cell, weight in ((trained[-1], 1.0), (trained[0], -KEPT)) if len(trained) > 1 else ():
        on, baseline = _on(cell), _baseline(sweep, cell)
        terms += [Term(weight, baseline), Term(-weight, on)] if on and baseline else []
    yield Comparison("the largest size against the smallest", tuple(terms) if len(terms) == 4 else ())


def _more_neighbors(sweep: SweepRecord) -> Iterator[Comparison]:
    for cell in _from_scratch(sweep):
        few, many = _on(cell, k=FEW), _on(cell, k=MANY)
        if few or many:
            yield _better(_name(sweep, cell), many, few)


def _larger_database(sweep: SweepRecord) -> Iterator[Comparison]:
    """Compare the whole database with each smaller one: its first documents, or a random part."""
    for cell in _from_scratch(sweep):
        run, on = cell.run, _on(cell)
        if run is None or run.retro is None or on is None:
            continue
        for entry in run.retro.evaluations:
            found = entry.retrieved
            if found and found.share < 1 and entry.text == on.entry.text and entry.k == on.entry.k:
                part = f"{found.share:.1%} of the database" + ("" if found.seed is None else f", seed {found.seed}")
                yield _better(_name(sweep, cell, part), on, Scored(run, run.retro, entry))


def _without_copies(sweep: SweepRecord) -> Iterator[Comparison]:
    for cell in _from_scratch(sweep):
        for text in _texts(cell):
            on, baseline = _on(cell, text), _baseline(sweep, cell, text)
            for alpha in ALPHAS[:-1]:
                where = _name(sweep, cell, text.name, f"r(C) <= {alpha:g}")
                comparison = _better(where, on, baseline)
                yield replace(
                    comparison, terms=tuple(replace(term, alpha=alpha, overlaps=on) for term in comparison.terms)
                )


def _of_values(axis: str, better: str, worse: str) -> Callable[[SweepRecord], Iterator[Comparison]]:
    """Compare cells that differ in the value of one axis alone."""

    def compare(sweep: SweepRecord) -> Iterator[Comparison]:
        others = [other for other in sweep.axes if other != axis]
        by_value = {
            value: {tuple(cell.overrides.get(other) for other in others): cell for cell in sweep.cells
                    if cell.overrides.get(axis) == value}
            for value in (better, worse)
        }  # fmt: skip
        for key in by_value[better].keys() & by_value[worse].keys():
            one, other = by_value[better][key], by_value[worse][key]
            where = ", ".join(f"{name}={value}" for name, value in zip(others, key, strict=True))
            yield _better(where or f"{better} against {worse}", _main(one), _main(other))

    return compare


def _retrofit_over_baseline(sweep: SweepRecord) -> Iterator[Comparison]:
    for cell in sweep.cells:
        if cell.overrides.get(VARIANT) == RETROFIT:
            yield _better(_name(sweep, cell), _on(cell), _baseline(sweep, cell))


def _every_database(sweep: SweepRecord) -> Iterator[Comparison]:
    """Compare the baseline with RETRO for each database that it was scored with."""
    for cell in sweep.cells:
        run, baseline = cell.run, _baseline(sweep, cell)
        if run is None or run.retro is None or baseline is None:
            yield Comparison(_name(sweep, cell), ())
            continue
        for entry in run.retro.evaluations:
            if entry.retrieved and entry.retrieved.is_whole and entry.text == baseline.entry.text:
                where = _name(sweep, cell, entry.retrieved.database, f"k={entry.k}")
                yield _better(where, Scored(run, run.retro, entry), baseline)


def _main(cell: Cell) -> Scored | None:
    """Return the main score of the model that a cell is about: RETRO, or a baseline that was trained alone."""
    run = cell.run
    return (_on(cell) or Scored.of(run, run.baseline)) if run else None


def _ablation(says: str, variant: str, *, better: bool = False) -> Claim:
    """Return a claim on a row of Table 13: that a variant is worse than RETRO, or better."""
    return Claim(says, "Table 13", _of_values(VARIANT, *((variant, RETRO) if better else (RETRO, variant))))


MAIN = ("table14", "figure1_left", "figure1_middle", "figure1_right", "figure5", "figure6", "table15")
"""Sweeps of sizes, which share their cells."""
CLAIMS: tuple[tuple[tuple[str, ...], tuple[Claim, ...]], ...] = (
    (
        MAIN,
        (
            Claim("RETRO[On] is better than the baseline.", "Figure 1, left; Table 14", _on_over_baseline),
            Claim(
                "RETRO[On] is better than the baseline on other texts.",
                "Tables 14 and 15",
                _on_over_baseline_on_others,
            ),
            Claim(
                f"RETRO[Off] is at most {AS_GOOD:.0%} worse than the baseline.", "Sec. 4.1; Table 14", _off_as_good
            ),
            Claim(
                f"The largest size keeps at least {KEPT:.0%} of the smallest one's gain: gains do not fall with size.",
                "Sec. 4.1; Figure 1, left",
                _gain_is_kept,
            ),
            Claim(
                f"{MANY} neighbors in evaluation are better than {FEW}.",
                "Sec. 4.1; Figure 1, right",
                _more_neighbors,
            ),
            Claim("The whole database is better than any part.", "Sec. 4.1; Figure 1, middle", _larger_database),
            Claim(
                "RETRO[On] is better than the baseline on text with little in common with its neighbors, for each "
                f"r(C) down to {ALPHAS[0]:g}.",
                "Sec. 4.4; Figure 6",
                _without_copies,
            ),
            Claim("RETROfit is better than the baseline that it starts from.", "Figure 5", _retrofit_over_baseline),
            Claim(
                "RETRO from scratch is better than RETROfit.",
                "Sec. 4.2; Figure 5",
                _of_values(VARIANT, RETRO, RETROFIT),
            ),
        ),
    ),
    (
        ("table13",),
        (
            _ablation("Retrieval is better than none.", NO_RETRIEVAL),
            _ablation("Conditioning the encoder on the chunk helps.", "no_query_conditioning"),
            _ablation("Positions in chunked cross-attention help.", "no_ca_positions"),
            _ablation("Separate embeddings of encoder and decoder help.", "shared_embeddings"),
            _ablation("Six encoder layers are better than two.", "6_layer_encoder", better=True),
            _ablation("Neighbors with continuations are better than neighbors alone.", "neighbors_only"),
            _ablation("Neighbors with continuations are better than continuations alone.", "continuations_only"),
            Claim(
                "Continuations alone are better than neighbors alone.",
                "Table 13",
                _of_values(VARIANT, "continuations_only", "neighbors_only"),
            ),
            _ablation("Two neighbors in training are better than one.", "1_neighbor"),
            _ablation("Two neighbors in training are better than four.", "4_neighbors"),
            _ablation("Every third layer from 6 is better than the first layer alone.", "ca_first_layer"),
            _ablation("Every third layer from 6 is better than the middle layer alone.", "ca_middle_layer"),
            _ablation("Every third layer from 6 is better than the last layer alone.", "ca_last_layer"),
            _ablation("Every third layer from 6 is better than all layers.", "ca_all_layers"),
            _ablation("Every third layer from 6 is better than every third from 1.", "ca_every_3_from_1"),
        ),
    ),
    (
        ("table4",),
        (Claim("RETROfit is better than its baseline with each database.", "Table 4", _every_database),),
    ),
    (
        ("retriever",),
        (
            Claim(
                "Neighbors by BM25 are better than by embeddings.",
                "Doostmohammadi et al. 2023",
                _of_values("retrieval.method", "bm25", "dense"),
            ),
            Claim(
                "Neighbors by embeddings, re-ranked with BM25, are better than by embeddings alone.",
                "Doostmohammadi et al. 2023",
                _of_values("retrieval.method", "hybrid", "dense"),
            ),
        ),
    ),
)  # fmt: skip
"""Claims by the sweep files that they are about."""
