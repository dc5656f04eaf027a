"""Writes what conf/ and docs/ repeat from the schemas: `python tools/configuration.py`."""

import difflib
from pathlib import Path

from conf_files import COMMAND, conf_files
from option_reference import REFERENCE, with_tables


def main() -> None:
    """Rewrite the files that differ from what the schemas say."""
    for path, text in generated().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")


def generated() -> dict[Path, str]:
    """Return the files that repeat something of the schemas, with the text that they should have."""
    return {**dict(conf_files()), REFERENCE: with_tables(REFERENCE.read_text(encoding="utf-8"))}


def difference(path: Path, text: str) -> str:
    """Show where a file differs from the text that it should have."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(difflib.unified_diff(lines, text.splitlines(), str(path), COMMAND, lineterm=""))


if __name__ == "__main__":
    main()
