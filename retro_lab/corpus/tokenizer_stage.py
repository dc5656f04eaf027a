"""The `tokenizer` stage: the tokenizer of a corpus, trained on its documents or fetched."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retro_lab.artifacts.stage import Advance, Artifact, Stage
from retro_lab.corpus.parquet import iterate_texts
from retro_lab.corpus.tokenizer import TokenizerRecipe


class TokenizerStage(Stage):
    """Train or fetch the tokenizer, and write it as one `tokenizer.json`."""

    name = "tokenizer"
    version = 2
    unit = "tokenizers"

    def __init__(self, recipe: TokenizerRecipe, documents: Artifact) -> None:
        """Make the tokenizer of `recipe`, which may learn from `documents`."""
        self.tokenizer_recipe = recipe
        self.documents = documents

    def settings(self) -> Mapping[str, Any]:
        """Return the recipe's settings."""
        return self.tokenizer_recipe.identity()

    def inputs(self) -> Mapping[str, Artifact]:
        """Return the documents, for a tokenizer that is trained on them."""
        return {"documents": self.documents} if self.tokenizer_recipe.learns else {}

    def libraries(self) -> Mapping[str, int]:
        """Return the library that learns vocabularies and writes `tokenizer.json`."""
        return {"tokenizers": 2}

    def shard_sizes(self) -> Sequence[int]:
        """Return one piece of work."""
        return [1]

    def write_shard(self, shard: int, folder: Path, advance: Advance) -> Mapping[str, Any]:
        """Write `tokenizer.json`."""
        limit = self.tokenizer_recipe.training_bytes
        tokenizer = self.tokenizer_recipe.make(iterate_texts(self.documents, "train", limit))
        tokenizer.save(folder)
        advance(1)
        return {"vocabulary_size": tokenizer.vocabulary_size, "document_marker": tokenizer.document_marker}

    def finish(self, shards: Sequence[Path], facts: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
        """Return the facts of the only shard."""
        return facts[0]
