"""Fingerprints: one short name for everything that an artifact was made from.

An artifact is a pure function of its stage's configuration, the fingerprints of its inputs, the version of the stage's
code, and the versions of the libraries that decide what it writes. The fingerprint is a hash of exactly these, so equal
fingerprints mean interchangeable artifacts on any machine.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

FINGERPRINT_LENGTH = 16


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of `value`: sorted keys, no spaces, no NaN.

    Raises:
        TypeError: `value` contains something that JSON cannot express.
        ValueError: `value` contains NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the recipe's canonical JSON."""
    return hashlib.sha256(canonical_json(recipe).encode("utf-8")).hexdigest()[:FINGERPRINT_LENGTH]


def library_version(module: str, parts: int) -> str:
    """Return the first `parts` parts of an installed library's version, such as 1.15 of 1.15.1."""
    return ".".join(str(import_module(module).__version__).split(".")[:parts])


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one phrase for each leaf in which two recipes differ, such as ``factory: 'Flat' -> 'IVF64,Flat'``."""
    phrases = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            phrases += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            phrases.append(f"{prefix}{key}: {_short(before)} -> {_short(after)}")
    return phrases


def _short(value: Any) -> str:
    text = repr(str(value) if isinstance(value, str) else value)  # an enumeration's member is shown as its text
    return text if len(text) <= 40 else f"{text[:37]}..."
