"""The paper's published numbers, to put beside ours: Tables 2, 4, 5, 13, 14 and 15 of Borgeaud et al. 2022."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

NUMBERS = Path(__file__).with_name("published.yaml")


class Block(BaseModel):
    """A part of a table with one metric."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    metric: str
    """What was measured, such as `bits_per_byte`."""
    unit: str
    """Unit of the values; `1` for pure numbers."""
    columns: Annotated[list[str], Field(min_length=1)]
    """Headings; sizes are options of `size`."""
    rows: Annotated[dict[str, list[float | int | None]], Field(min_length=1)]
    """A value for each column by row, None where the paper has none."""

    @model_validator(mode="after")
    def _rectangular(self) -> "Block":
        for row, values in self.rows.items():
            if len(values) != len(self.columns):
                raise ValueError(f"row {row} has {len(values)} values for {len(self.columns)} columns")
        return self

    def value(self, row: str, column: str) -> float | None:
        """Return a cell; None where the paper has none, or no such row or column."""
        if row not in self.rows or column not in self.columns:
            return None
        return self.rows[row][self.columns.index(column)]

    @property
    def cells(self) -> dict[tuple[str, str], float]:
        """The values by row and column, in the paper's order."""
        return {
            (row, column): value
            for row, values in self.rows.items()
            for column, value in zip(self.columns, values, strict=True)
            if value is not None
        }


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would keep the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise ValueError(f"a key is there twice, near line {node.start_mark.line + 1}")
        return found


def read(path: Path) -> Mapping[str, Mapping[str, Block]]:
    """Read and check a file of published numbers: its tables, and their blocks, by name.

    Raises:
        ValueError: It is not of the form that its head describes.
    """
    # Numbers are floats where they have a point; names of rows are texts even where they look like numbers.
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    return TypeAdapter(dict[str, dict[str, Block]]).validate_python(content)


@cache
def published() -> Mapping[str, Mapping[str, Block]]:
    """Return the numbers of the paper's tables: `published()["table14"]["c4"].value("RETRO[On]", "7_5b")` is 0.66."""
    return read(NUMBERS)
