"""Definitions: schemas and keyspaces, sequenced in the home region and mirrored to all others."""

from streams.definitions.entries import Entry
from streams.definitions.kafka_log import KafkaDefinitionsLog, KafkaLogOptions
from streams.definitions.log import DefinitionsLog
from streams.definitions.registry import (
    OP_DELETE,
    OP_PURGE,
    OP_PUT,
    Definitions,
    Incompatible,
    check_subject,
)
from streams.definitions.sequenced import DefinitionsOptions
from streams.definitions.view import DefinitionsView, Version

__all__ = [
    "OP_DELETE",
    "OP_PURGE",
    "OP_PUT",
    "Definitions",
    "DefinitionsLog",
    "DefinitionsOptions",
    "DefinitionsView",
    "Entry",
    "Incompatible",
    "KafkaDefinitionsLog",
    "KafkaLogOptions",
    "Version",
    "check_subject",
]
