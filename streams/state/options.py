"""How much memory and how many files the partitions of one process may take together."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import rocksdict

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Limits. Partitions with equal options share one block cache and one write-buffer budget in a process.

    `block_cache_bytes`, `write_buffers_bytes`: for all partitions together (memtables beyond the second are flushed,
    writers are never stalled by it). `write_buffer_bytes`: one partition's memtable; `memtable_bloom_share`: what its
    filter takes of that. `max_open_files`, `bloom_bits`, `block_bytes`: per partition. `marker_write_s`: a marker
    without rows (a heartbeat) is written at most so often; in between it is known in memory only, and after a crash
    read from the changelog again.
    """

    block_cache_bytes: int = 96 * MIB
    write_buffers_bytes: int = 128 * MIB
    write_buffer_bytes: int = 32 * MIB
    max_open_files: int = 128
    memtable_bloom_share: float = 0.1
    bloom_bits: int = 10
    block_bytes: int = 8 << 10
    background_jobs: int = 2
    marker_write_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Shared:
    cache: rocksdict.Cache
    buffers: rocksdict.WriteBufferManager


@functools.lru_cache(maxsize=8)
def _shared(options: StoreOptions) -> _Shared:
    return _Shared(
        rocksdict.Cache(options.block_cache_bytes),
        rocksdict.WriteBufferManager(options.write_buffers_bytes, False),
    )


def cache_usage_bytes(options: StoreOptions) -> int:
    """Bytes that the block cache shared by partitions with these options holds now."""
    return int(_shared(options).cache.get_usage())


def rocksdb_options(options: StoreOptions) -> rocksdict.Options:
    """RocksDB's options for one partition."""
    shared = _shared(options)
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
    # Most lookups are of keys that are not in memory: a filter spares the memtables' searches (2.6 -> 2.0 us a key).
    found.set_memtable_prefix_bloom_ratio(options.memtable_bloom_share)
    found.set_memtable_whole_key_filtering(True)
    found.set_max_open_files(options.max_open_files)
    found.set_max_background_jobs(options.background_jobs)
    found.set_compression_type(rocksdict.DBCompressionType.lz4())
    found.set_level_compaction_dynamic_level_bytes(True)
    # Files that consist mostly of removals are compacted without waiting for their level to fill.
    found.add_compact_on_deletion_collector_factory(1_000, 500, 0.5)
    found.set_keep_log_file_num(2)
    found.set_max_log_file_size(MIB)
    found.set_stats_dump_period_sec(0)
    found.set_stats_persist_period_sec(0)
    return found
