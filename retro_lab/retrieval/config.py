"""What is retrieved, from where and how: the `retrieval`, `database`, `embedder` and `index` groups."""

from dataclasses import dataclass, field
from enum import StrEnum

from retro_lab.errors import ConfigurationError
from retro_lab.ranges import NOT_NEGATIVE, POSITIVE, RATIO, SEED, SHARE, check_ranges


class Value(StrEnum):
    """What a neighbor brings: itself N, its continuation F, or both (Borgeaud et al. 2022, Sec. 2.1 and Table 13)."""

    neighbor_and_continuation = "neighbor_and_continuation"
    neighbor = "neighbor"
    continuation = "continuation"

    def length(self, chunk_length: int) -> int:
        """Return the tokens that a neighbor brings at most."""
        return chunk_length * (2 if self is Value.neighbor_and_continuation else 1)


class Method(StrEnum):
    """How neighbors are found."""

    dense = "dense"
    bm25 = "bm25"
    hybrid = "hybrid"


class Control(StrEnum):
    """Neighbors of which it is known beforehand what they can add: nothing, or all."""

    random = "random"
    shuffled = "shuffled"
    oracle = "oracle"


class Metric(StrEnum):
    """How the distance of two embeddings is measured."""

    l2 = "l2"
    inner_product = "inner_product"
    cosine = "cosine"


class EmbedderPrecision(StrEnum):
    """Precision of the frozen encoder's matrix products."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Unit(StrEnum):
    """What a random database keeps or leaves out as a whole."""

    chunk = "chunk"
    document = "document"


@dataclass(kw_only=True)
class FilterConfig:
    """Which stored neighbors of a chunk are dropped; the next nearest take their places.

    A neighbor is compared with its continuation: up to 128 tokens where a chunk has 64. It is dropped if any of the
    settings that are given says so.
    """

    longest_overlap: int | None = None
    """Drop a neighbor that has a run of this many tokens, or a longer one, in common with the chunk and the one that
    follows it, which its neighbors help to predict."""
    jaccard: float | None = None
    """Drop a neighbor whose set of 13-grams of tokens has this Jaccard similarity, or a larger one, to that of the
    chunk and the one that follows it."""
    other_documents: bool = False
    """Drop a neighbor of a document with the id or the group of the chunk's own, which another corpus can hold too."""
    near_copies: float | None = None
    """Drop a neighbor whose 13-grams have this Jaccard similarity, or a larger one, to those of a nearer neighbor that
    is kept."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("evaluation.filters", self, longest_overlap=POSITIVE, jaccard=SHARE, near_copies=SHARE)

    @property
    def drops(self) -> bool:
        """Whether anything is set that can drop a neighbor."""
        return self.other_documents or any((self.longest_overlap, self.jaccard, self.near_copies))


@dataclass(kw_only=True)
class RetrievalConfig:
    """What a chunk retrieves."""

    k: int = 2
    """Neighbors of each chunk while training. 0 trains the baseline transformer, which has no retrieval weights."""
    value: Value = Value.neighbor_and_continuation
    """What a neighbor brings: `neighbor_and_continuation` ([N, F] of the paper), `neighbor` or `continuation`."""
    stored: int = 100
    """Neighbors found and stored for each chunk, so that any k up to this needs no new search."""
    method: Method = Method.dense
    """How neighbors are found: `dense` (nearest embeddings), `bm25` (shared tokens, no embeddings at all) or `hybrid`
    (dense candidates, ranked by BM25)."""
    control: Control | None = None
    """Neighbors for control, in training and in scores: `random` (chunks of the database at random) and `shuffled` (the
    neighbors of another chunk) can add nothing; `oracle` (the chunk itself, with the text to be predicted) must add
    much. null takes those that are found."""
    candidates: int = 64
    """Dense candidates for each chunk, from each database shard, that `hybrid` ranks again."""
    bm25_k1: float = 1.5
    """How slowly the weight of a token levels off as it is repeated in a chunk."""
    bm25_b: float = 0.75
    """How much a chunk's length, relative to the mean, lowers the weight of its tokens: 0 not at all, 1 fully."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(
            "retrieval",
            self,
            k=NOT_NEGATIVE,
            stored=POSITIVE,
            candidates=POSITIVE,
            bm25_k1=NOT_NEGATIVE,
            bm25_b=RATIO,
        )
        if self.control is Control.oracle and self.value is Value.neighbor:
            raise ConfigurationError(
                "retrieval.control=oracle is the text to be predicted, which retrieval.value=neighbor leaves out; use "
                "retrieval.value=continuation or neighbor_and_continuation."
            )


@dataclass(kw_only=True)
class DatabaseConfig:
    """Which documents can be retrieved."""

    corpus: str | None = None
    """Corpus whose training split is the database: an option of `corpus`, or a name in `corpora`; null takes the corpus
    that is trained on."""
    fraction: float = 1.0
    """Share of that split's chunks in the database, in whole documents."""
    tokens: float | None = None
    """Size of the database in tokens; if given, it replaces `fraction`."""
    fractions: list[float] = field(default_factory=lambda: [1.0])
    """Fractions that will be used: the database is cut into shards at them, so that none needs a new search."""
    seed: int = 0
    """Seed of the order of documents, which decides what a smaller database holds, and of the index's samples."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("database", self, fraction=SHARE, tokens=POSITIVE, fractions=SHARE, seed=SEED)


@dataclass(kw_only=True)
class EmbedderConfig:
    """The frozen BERT whose mean-pooled last layer embeds each chunk."""

    model: str
    """Name on the Hugging Face hub, a folder, or `package:NAME/FOLDER` for weights carried by a Python package."""
    revision: str | None = None
    """Commit, branch or tag on the hub. Embeddings are identified by the commit that it stands for."""
    max_length: int = 256
    """Longest input in the embedder's own tokens; the rest of a longer chunk is cut off."""
    batch_size: int = 64
    """Chunks embedded at once; GPUs are faster with more."""
    precision: EmbedderPrecision = EmbedderPrecision.auto
    """`float32`, `bfloat16`, or `auto`: bfloat16 where the hardware supports it."""
    compile: bool = False
    """Compile the encoder with torch.compile: 6% faster on a processor, after 40 seconds. Needs g++."""
    shard_size: int = 4096
    """Chunks in one embedding shard; an interrupted build does not repeat a finished shard."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("embedder", self, max_length=POSITIVE, batch_size=POSITIVE, shard_size=POSITIVE)


@dataclass(kw_only=True)
class IndexConfig:
    """The nearest-neighbor index over chunk embeddings."""

    factory: str = "auto"
    """FAISS factory string, or `auto`: exact search up to `exact_below` vectors, and above that the fastest index that
    reaches `recall` within `max_bytes`."""
    metric: Metric = Metric.l2
    """`l2` (squared, on embeddings as they are, as in the paper), `inner_product` or `cosine`."""
    exact_below: int = 200_000
    """Largest number of vectors that `auto` searches exactly."""
    recall: float = 0.95
    """Share of the 10 nearest neighbors of held-out chunks to find; search parameters are tuned to reach it. Of all
    `retrieval.stored` neighbors a smaller share is found; `task=build` shows both."""
    max_bytes: float | None = None
    """Bytes of memory that the index of one database shard may take if `factory=auto` chooses it; null sets no
    limit."""
    training_vectors: int | None = None
    """Number of random vectors from which the index learns its lists and codes; null takes 40 for each list."""
    search: str = "auto"
    """FAISS search parameters, such as `nprobe=64,k_factor_rf=4` or `efSearch=128`; `auto` tunes them to `recall`."""
    query_batch: int = 4096
    """Queries searched at once."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(
            "index",
            self,
            exact_below=NOT_NEGATIVE,
            recall=SHARE,
            max_bytes=POSITIVE,
            training_vectors=POSITIVE,
            query_batch=POSITIVE,
        )


def check_length(length: int, chunk_length: int) -> None:
    """Check that sequences of `length` tokens are whole chunks.

    Raises:
        ConfigurationError: They are not, or there is nothing in them.
    """
    if length % chunk_length or length <= 0:
        raise ConfigurationError(
            f"data.sequence_length={length} is not a multiple of model.chunk_length={chunk_length}."
        )
