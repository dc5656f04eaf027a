"""Where text comes from and how it becomes tokens: the `corpus` and `tokenizer` configuration groups."""

from dataclasses import dataclass, field
from typing import Any

from retro_lab.corpus.documents import MAX_DOCUMENT_BYTES


@dataclass(kw_only=True)
class CorpusConfig:
    """What every corpus has; each kind of source adds its own fields below."""

    _target_: str
    """Class of the document source."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out to choose settings on, if the source names no held-out split; a hash of
    their ids decides which. It is at least one of three documents."""
    test_fraction: float = 0.05
    """Share of the documents that is held out to report results on, in the same way. The training split depends only on
    the sum of both fractions."""
    group_pattern: str | None = None
    """Regular expression, searched for in document ids: documents with the same match are held out together or not at
    all. `^.*/` keeps a folder together; null treats each document by itself."""
    max_bytes: float | None = None
    """UTF-8 bytes of text to take, in whole documents, over all splits; null takes everything."""
    max_document_bytes: float = MAX_DOCUMENT_BYTES
    """Documents of more UTF-8 bytes are skipped and counted; building takes about 150 times this much memory."""
    overlap: float | None = None
    """Share of each window that is in the one before as well when this text is scored, rounded up, as windows move by
    whole chunks; null takes `evaluation.stride`."""


@dataclass(kw_only=True)
class PythonSourceConfig(CorpusConfig):
    """Python source files of installed packages."""

    _target_: str = "retro_lab.corpus.sources.python_source.PythonSource"
    packages: list[str]
    """Import names of installed packages."""
    include: list[str] = field(default_factory=lambda: ["**/*.py"])
    """Glob patterns of the files to read, relative to each package."""
    exclude: list[str] = field(default_factory=list)
    """Glob patterns of files to leave out."""
    max_file_bytes: float = 1e6
    """Files larger than this are left out."""


@dataclass(kw_only=True)
class LocalConfig(CorpusConfig):
    """Files of the user's own: json, jsonl, parquet, text or arrow, compressed or not."""

    _target_: str = "retro_lab.corpus.sources.local.LocalSource"
    path: str
    """A file, a folder or a glob pattern. A single text file is cut into documents; of several, each is one
    document."""
    validation_path: str | None = None
    """File, folder or glob pattern of the documents to choose settings on; null holds out `validation_fraction`, or
    half of `test_path` if that is given."""
    test_path: str | None = None
    """File, folder or glob pattern of the documents to report results on; null holds out `test_fraction`, or half of
    `validation_path` if that is given."""
    format: str | None = None
    """`json` (also for jsonl), `parquet`, `text` or `arrow`; null infers it from the file names."""
    text_field: str = "text"
    """Name of the field that holds a document's text; `meta.text` is the field `text` inside `meta`."""
    id_field: str | None = None
    """Name of the field that identifies a document; null numbers documents by file and row."""
    group_field: str | None = None
    """Name of a field, such as the author: documents with the same value are held out together or not at all."""


@dataclass(kw_only=True)
class HubConfig(CorpusConfig):
    """A dataset of the Hugging Face hub, or a folder in the same layout."""

    _target_: str = "retro_lab.corpus.sources.hub.HubSource"
    dataset: str
    """Name of the dataset, or a folder; also a file, if a single split is named."""
    subset: str | None = None
    """Configuration of the dataset, such as a language or a version."""
    revision: str | None = None
    """Commit or tag of the dataset. Pin it to make builds repeatable."""
    data_files: dict[str, Any] | None = None
    """Files by split name, for datasets without their own layout."""
    train_split: str | None = "train"
    """Name of the split to train on; null for a text that is only scored."""
    validation_split: str | None = None
    """Name of the split to choose settings on; null holds out `validation_fraction` of the training split, or half of
    `test_split` if that is given."""
    test_split: str | None = None
    """Name of the split to report results on; null holds out `test_fraction` of the training split, or half of
    `validation_split` if that is given."""
    text_field: str = "text"
    """Name of the field that holds a document's text; `meta.text` is the field `text` inside `meta`."""
    id_field: str | None = None
    """Name of the field that identifies a document; null numbers documents by split and row."""
    group_field: str | None = None
    """Name of a field, such as the author: documents with the same value are held out together or not at all."""
    part: str | None = None
    """The only part of the dataset to read, one of `parts`; null reads all. `evaluation.datasets=[NAME/PART]` scores
    one alone."""
    parts: dict[str, str] = field(default_factory=dict)
    """Names of the dataset's parts, with what `part_field` holds in each."""
    part_field: str | None = None
    """Name of the field that says which part a document is in."""


@dataclass(kw_only=True)
class SummaryConfig(HubConfig):
    """Articles with summaries, of which the summaries are scored."""

    _target_: str = "retro_lab.corpus.sources.summaries.SummarySource"
    article_field: str
    """Name of the field that holds an article; `text_field` names that of its summary."""


@dataclass(kw_only=True)
class WikipediaDumpConfig(CorpusConfig):
    """Named articles of a Wikipedia dump, all of them to be scored."""

    _target_: str = "retro_lab.corpus.sources.wikipedia_dump.WikipediaDumpSource"
    path: str
    """A dump of articles (MediaWiki's XML, compressed or not), or a glob pattern of the files of one."""
    titles: list[str]
    """Titles of the articles to take."""


@dataclass(kw_only=True)
class WikipediaConfig(HubConfig):
    """Wikipedia, without articles that another corpus holds out."""

    _target_: str = "retro_lab.corpus.sources.wikipedia.WikipediaSource"
    title_field: str = "title"
    """Name of the field that holds an article's title."""
    without: Any = None
    """A corpus whose articles are left out, by title; null leaves out none."""


@dataclass(kw_only=True)
class MixtureConfig(CorpusConfig):
    """Several corpora, each with a share of the text (Borgeaud et al. 2022, Table 1)."""

    _target_: str = "retro_lab.corpus.sources.mixture.MixtureSource"
    sources: dict[str, Any]
    """Corpora by name, each a `corpus` configuration of its own."""
    weights: dict[str, float]
    """Share of `max_bytes` that each source contributes; they need not sum to one."""
    fractions: dict[str, float] = field(default_factory=dict)
    """Largest share of a source's documents to take, chosen by a hash of their ids; a source without an entry is taken
    whole."""


@dataclass(kw_only=True)
class DeduplicationConfig:
    """Which documents are too much like each other to train on, and retrieve from, all of them."""

    similarity: float | None = 0.8
    """Of training documents whose 13-grams of words have at least this Jaccard similarity, keep the first only; null
    keeps all."""


@dataclass(kw_only=True)
class DecontaminationConfig:
    """Which documents are too much like held-out ones to train on (Borgeaud et al. 2022, Sec. 2.1)."""

    similarity: float | None = 0.8
    """Drop training documents whose 13-grams of words have at least this Jaccard similarity to those of a held-out
    document; null drops none."""


@dataclass(kw_only=True)
class TokenizerConfig:
    """What every tokenizer has."""

    _target_: str
    """Class that makes the tokenizer."""


@dataclass(kw_only=True)
class ByteBPEConfig(TokenizerConfig):
    """A byte-level byte-pair encoding trained on the corpus."""

    _target_: str = "retro_lab.corpus.tokenizer.ByteBPE"
    vocabulary_size: int = 4096
    """Number of token ids, including the 256 bytes and the document marker."""
    training_bytes: float = 1e8
    """UTF-8 bytes of the training split to learn merges from."""


@dataclass(kw_only=True)
class PretrainedTokenizerConfig(TokenizerConfig):
    """Any tokenizer of the Hugging Face hub, or of a folder or `tokenizer.json` on disk."""

    _target_: str = "retro_lab.corpus.pretrained_tokenizer.PretrainedTokenizer"
    name: str
    """Name on the hub, a folder, a file in the format of `tokenizer.json`, or a .gguf file."""
    revision: str | None = None
    """Commit or tag on the hub."""
    marker: str | None = None
    """Token that marks documents; null takes the beginning- or end-of-text token, or a new id if there is neither."""
    lossy: bool = False
    """Accept a tokenizer that does not reproduce all text. Bits per byte are then too low, and the report says so."""
