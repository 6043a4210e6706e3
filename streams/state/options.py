"""How much memory and how many files the partitions of one process may take together."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import rocksdict

MIB = 1 << 20
_LEVELS = 7


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Limits. Partitions with equal budgets share one block cache and one write-buffer budget in a process.

    `block_cache_bytes`, `write_buffers_bytes`: for all partitions together (memtables beyond the second are flushed,
    writers are never stalled by it). `write_buffer_bytes`: one partition's memtable. `max_open_files`,
    `bloom_bits`, `block_bytes`: per partition. `marker_write_s`: a marker without rows (a heartbeat) is written at most
    so often; in between it is known in memory only, and after a crash read from the changelog again.
    `removals`: a file is compacted at once when of so many rows in turn (first) so many (second) are removals, so that
    what is purged leaves the disk; where rows come and go all the time that must not be few, or each row costs double.
    `compressed_from`: the first level whose blocks are compressed: those above are rewritten most often.
    `wal`: False where a log has everything anyway: a kill then loses the last units, each whole, and no others; how
    many, is bounded by memtables and by `flush_s`. Removals wait for no longer than `removals_flush_s`, since what they
    remove may be in files, and would stay there.
    `memtable_filter`: the part of a memtable that is a filter of its keys, for who mostly asks for what is not there.
    """

    block_cache_bytes: int = 96 * MIB
    write_buffers_bytes: int = 128 * MIB
    write_buffer_bytes: int = 32 * MIB
    max_open_files: int = 128
    bloom_bits: int = 10
    block_bytes: int = 8 << 10
    background_jobs: int = 2
    marker_write_s: float = 30.0
    removals: tuple[int, int] = (1_000, 500)
    compressed_from: int = 0
    memtable_filter: float = 0.0
    wal: bool = True
    flush_s: float = 600.0
    removals_flush_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Shared:
    cache: rocksdict.Cache
    buffers: rocksdict.WriteBufferManager


@functools.lru_cache(maxsize=8)
def _shared(block_cache_bytes: int, write_buffers_bytes: int) -> _Shared:
    return _Shared(rocksdict.Cache(block_cache_bytes), rocksdict.WriteBufferManager(write_buffers_bytes, False))


def _shared_by(options: StoreOptions) -> _Shared:
    return _shared(options.block_cache_bytes, options.write_buffers_bytes)


def cache_usage_bytes(options: StoreOptions) -> int:
    """Bytes that the block cache shared by partitions with these options holds now."""
    return int(_shared_by(options).cache.get_usage())


def rocksdb_options(options: StoreOptions) -> rocksdict.Options:
    """RocksDB's options for one partition."""
    shared = _shared_by(options)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(shared.cache)
    table.set_bloom_filter(options.bloom_bits, False)
    table.set_block_size(options.block_bytes)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_data_block_index_type(rocksdict.DataBlockIndexType.binary_and_hash())
    found = rocksdict.Options(raw_mode=True)
    found.create_if_missing(True)
    found.set_block_based_table_factory(table)
    found.set_write_buffer_manager(shared.buffers)
    found.set_write_buffer_size(options.write_buffer_bytes)
    if options.memtable_filter:
        found.set_memtable_prefix_bloom_ratio(options.memtable_filter)
        found.set_memtable_whole_key_filtering(True)
    found.set_max_open_files(options.max_open_files)
    found.set_max_background_jobs(options.background_jobs)
    found.set_compression_type(rocksdict.DBCompressionType.lz4())
    if options.compressed_from:
        plain, packed = rocksdict.DBCompressionType.none(), rocksdict.DBCompressionType.lz4()
        found.set_compression_per_level([plain if at < options.compressed_from else packed for at in range(_LEVELS)])
    found.set_level_compaction_dynamic_level_bytes(True)
    found.add_compact_on_deletion_collector_factory(*options.removals, 0.5)  # or half of a file's rows are
    found.set_keep_log_file_num(2)
    found.set_max_log_file_size(MIB)
    found.set_stats_dump_period_sec(0)
    found.set_stats_persist_period_sec(0)
    return found
