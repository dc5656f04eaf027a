"""The paper's numbers, checked against each other, and against the models that this laboratory builds."""

import itertools
from pathlib import Path

import pytest

from retro_lab.config import catalog
from retro_lab.config.compose import compose
from retro_lab.report.published import published, read
from retro_lab.tasks.plan import Plan

PAPER = published()
PILE = PAPER["table15"]["table15"]
CELLS = {"table2": 8 + 4 + 20, "table4": 21 + 16, "table5": 8, "table13": 15, "table14": 60 + 40 + 59, "table15": 80}


@pytest.mark.parametrize("table", CELLS)
def test_every_cell_is_there(table: str) -> None:
    assert sum(len(block.cells) for block in PAPER[table].values()) == CELLS[table]


def test_there_are_no_other_tables() -> None:
    assert PAPER.keys() == CELLS.keys()


@pytest.mark.parametrize(
    ("table", "block", "row", "column", "value"),
    [
        ("table2", "parameters", "1_5b", "Baseline", 1309),
        ("table4", "perplexity", "RETRO, C4", "test", 10.23),
        ("table4", "perplexity", "Megatron", "valid", None),
        ("table4", "database", "RETRO, MassiveText 100%", "keys", 28),
        ("table5", "table5", "RETRO 7.5B (DPR retrieval)", "test", 45.5),
        ("table13", "table13", "ca_all_layers", "172m", 0.860),
        ("table14", "wikitext103", "RETRO[Off]", "425m", 19.78),
        ("table14", "lambada", "RETRO[On]", "7_5b", 0.73),
        ("table14", "database", "900B", "1_5b", 0.76),
        ("table14", "k", "100", "1_5b", None),
        ("table14", "k", "40", "7_5b", 0.65),
        ("table15", "table15", "github", "RETRO 7.5B", 0.199),
    ],
)
def test_cells_are_the_papers(table: str, block: str, row: str, column: str, value: float | None) -> None:
    assert PAPER[table][block].value(row, column) == value


@pytest.mark.parametrize("size", PAPER["table2"]["parameters"].rows)
def test_table2_is_what_our_models_have(size: str) -> None:
    for column, k in (("Baseline", 0), ("RETRO", 2)):
        counted = Plan.of(compose([f"+experiment=paper_{size}", f"retrieval.k={k}"])).parameters.parts["non_embedding"]
        assert counted / 1e6 == pytest.approx(PAPER["table2"]["parameters"].value(size, column), rel=0.005)
    shape, config = PAPER["table2"]["shape"], compose([f"size={size}"]).size
    ours = {"d": config.width, "d_ffw": config.ffw_width, "heads": config.heads, "head_size": config.head_size}
    assert {column: shape.value(size, column) for column in shape.columns} == ours | {"layers": config.layers}


def test_table2_increases_follow_from_its_counts() -> None:
    table = PAPER["table2"]
    for size, (baseline, retro) in table["parameters"].rows.items():
        assert round(100 * (retro / baseline - 1)) == table["increase"].value(size, "RETRO")


@pytest.mark.parametrize(("name", "wins"), [("Baseline 7B", 16), ("GPT-3", 13), ("Jurassic-1", 10), ("Gopher", 9)])
def test_table15_retro_beats_as_many_as_it_does(name: str, wins: int) -> None:
    retro, other = ([PILE.value(row, column) for row in PILE.rows] for column in ("RETRO 7.5B", name))
    assert sum(a < b for a, b in zip(retro, other, strict=True)) == wins


def test_table14_has_its_headline_in_every_block() -> None:
    """The largest database, and ten neighbors, are the row RETRO[On] of C4."""
    c4 = PAPER["table14"]["c4"].rows["RETRO[On]"]
    assert PAPER["table14"]["database"].rows["full"] == PAPER["table14"]["k"].rows["10"] == c4


def test_table14_a_larger_database_is_never_worse() -> None:
    rows = list(PAPER["table14"]["database"].rows.values())
    assert all(a <= b for larger, smaller in itertools.pairwise(rows) for a, b in zip(larger, smaller, strict=True))


def test_table13_shares_of_the_gain_are_those_of_the_text() -> None:
    """Sec. 4.5: neighbors alone bring 22% of the gain, and continuations alone 56%."""
    block = PAPER["table13"]["table13"]
    none, whole, neighbors, continuations = (
        block.rows[name][0] for name in ("no_retrieval", "retro", "neighbors_only", "continuations_only")
    )
    assert [round(100 * (none - part) / (none - whole)) for part in (neighbors, continuations)] == [22, 56]


def test_rows_and_columns_are_named_as_our_options_are() -> None:
    assert set(PAPER["table13"]["table13"].rows) == catalog.options("variant").keys() - {"retrofit"}
    sizes = set(catalog.options("size"))
    assert {column for block in PAPER["table14"].values() for column in block.columns} <= sizes
    assert set(PAPER["table2"]["parameters"].rows) <= sizes


BLOCK = "metric: m\n    unit: u\n    columns: [a, b]\n    rows:\n      "


@pytest.mark.parametrize(
    ("rows", "said"),
    [("r: [1]", "1 values for 2 columns"), ("r: [1, x]", "valid"), ("r: [1, 2]\n      r: [1, 3]", "twice")],
)
def test_a_damaged_file_is_refused(rows: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text(f"t:\n  b:\n    {BLOCK}{rows}\n")
    with pytest.raises(ValueError, match=said):
        read(path)
