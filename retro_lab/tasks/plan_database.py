"""The cost of a retrieval database: the part of `task=plan` about builds. `cost.database` does the arithmetic."""

from rich.console import Group

from retro_lab.cost.database import BuildLayout, DatabaseSizes
from retro_lab.evaluation.knn_lm import STATE_BYTES
from retro_lab.retrieval.factory import choose_factory, index_bytes
from retro_lab.retrieval.neighbors import SHARD_QUERIES
from retro_lab.tasks.config import RunConfig
from retro_lab.tasks.plan_tables import BYTES, scaled, section
from retro_lab.tasks.task_config import PlanConfig


def database_sizes(config: RunConfig, task: PlanConfig, vocabulary: int) -> DatabaseSizes:
    """Compute the sizes of a database with as much text as is trained on, unless its size is given."""
    return DatabaseSizes(
        database_tokens=config.database.tokens or config.database.fraction * config.schedule.tokens,
        searched_tokens=config.schedule.tokens,
        tokens_per_document=task.tokens_per_document,
        chunk_length=config.model.chunk_length,
        vocabulary=vocabulary,
        width=task.embedding_width,
        stored=config.retrieval.stored,
        factory=config.index.factory,
        exact_below=config.index.exact_below,
        recall=config.index.recall,
        max_bytes=config.index.max_bytes,
        largest_index=task.index_memory,
    )


def database_sections(config: RunConfig, task: PlanConfig, vocabulary: int, gpus: int) -> list[Group]:
    """Show the cost of the database, and how to divide its build between `gpus` ranks with a GPU each."""
    sizes = database_sizes(config, task, vocabulary)
    return [_database(sizes, task), _layout(sizes, task, gpus)]


def datastore_section(config: RunConfig) -> Group:
    """Show the size of the kNN-LM datastore of a database with as much text as is trained on, unless it is given."""
    tokens = int(config.database.tokens or config.database.fraction * config.schedule.tokens)
    width, index = config.size.width, config.index
    choice = choose_factory(index.factory, tokens, width, index.exact_below, index.recall, index.max_bytes)
    rows = {
        "states": scaled(tokens * width * STATE_BYTES, BYTES),
        "index, in memory to search": scaled(index_bytes(choice.factory, tokens, width), BYTES),
        "index family": choice.factory,
    }
    return section(
        "kNN-LM datastore",
        f"a hidden state of {width:,} numbers of 16 bits for each of {tokens:,} tokens; the baseline reads the "
        f"database once, {config.data.sequence_length / config.evaluation.stride:.3g} tokens for each of its own",
        {part: [value] for part, value in rows.items()},
    )


def _database(sizes: DatabaseSizes, task: PlanConfig) -> Group:
    shards = sizes.index_shards
    rows = {
        "chunks": f"{sizes.chunks:,}",
        "tokens": scaled(sizes.tokens_bytes, BYTES),
        "embeddings": scaled(sizes.embeddings_bytes, BYTES),
        "index": scaled(sizes.index_bytes, BYTES),
        "search": scaled(sizes.search_bytes, BYTES),
        "neighbors": scaled(sizes.neighbors_bytes, BYTES),
        "as the paper stores it": f"{scaled(sizes.paper_bytes, BYTES)}, keys in float32 and tokens in 32 bits",
        "index family": f"{shards} x {sizes.index_factory}",
        "memory to search": f"{scaled(sizes.index_bytes / shards, BYTES)} at a time",
        "GPU hours to embed": f"{sizes.embedding_hours(task.embedding_chunks_per_second):,.1f}",
        "CPU hours to search": f"{sizes.search_hours(task.queries_per_second):,.1f}",
    }
    return section(
        f"Database of {sizes.database_tokens:,.0f} tokens",
        f"{task.tokens_per_document:,.0f} tokens per document; {sizes.corpus_chunks:,} chunks embedded, "
        f"{task.embedding_chunks_per_second:,.0f} per second, width {sizes.width}; {sizes.stored} neighbors stored for "
        f"{sizes.searched_chunks:,} training chunks, {task.queries_per_second:,.0f} searched per second in each index; "
        "the documents themselves (Parquet) are not counted",
        {part: [value] for part, value in rows.items()},
    )


def _layout(sizes: DatabaseSizes, task: PlanConfig, gpus: int) -> Group:
    """Suggest how to divide the build."""
    layout = BuildLayout(sizes, gpus, task.embedding_chunks_per_second, SHARD_QUERIES)
    rows = {
        "embedder.shard_size": f"{layout.embedding_shard_size:,}",
        "embedding shards": f"{layout.embedding_shards:,}, {layout.shard_hours * 60:,.1f} minutes each",
        "index shards": f"{sizes.index_shards:,} of {layout.index_shard_chunks:,} chunks",
        "search shards": f"{layout.search_shards:,} of up to {SHARD_QUERIES:,} chunks in one index",
        "ranks": f"{gpus:,}, each with a GPU",
        "hours to embed": f"{layout.embedding_hours:,.1f}",
    }
    return section(
        "Layout of the build",
        "suggested: run the same command on each rank, and the ranks share the shards; index shards are cut to fit "
        f"task.index_memory = {scaled(task.index_memory, BYTES)} (set them with database.fractions)",
        {part: [value] for part, value in rows.items()},
    )
