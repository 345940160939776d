"""TensorBoard event files, written synchronously and without TensorFlow, torch or protobuf.

An event file is a sequence of TFRecords, each an `Event` message of TensorFlow's event.proto. This module writes three
kinds: the file version, the start of a session, and scalars. tensorboardX, the lightest library for it, imports torch
if it is installed, which takes two seconds, and writes from a thread that blocks forever once the disk was full.
"""

import math
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from mlm_jax.config.settings import LARGEST_FLOAT32
from mlm_jax.run.records import append_whole

# Field numbers in event.proto and summary.proto.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
_SUMMARY_VALUE, _TAG, _SIMPLE_VALUE, _STATUS = 1, 1, 2, 1
_SESSION_START = 1
# Wire types of protobuf.
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


class EventFile:
    """A new event file in `folder`, which is created if missing. TensorBoard drops older events from `purge_step` on.

    Raises:
        OSError: an event could not be written, for instance because the disk is full; no part of it remains.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file = (folder / name).open("ab", buffering=0)
        self._append(_bytes(_FILE_VERSION, b"brain.Event:2"))
        start = _key(_STATUS, _VARINT) + _varint(_SESSION_START)
        self._append(_key(_STEP, _VARINT) + _varint(purge_step) + _bytes(_SESSION_LOG, start))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends an event with the scalars of `step`, by tag, as float32; larger numbers become infinite."""
        values = [
            _bytes(_TAG, tag.encode()) + _key(_SIMPLE_VALUE, _FLOAT) + _float32(value)
            for tag, value in scalars.items()
        ]
        summary = b"".join(_bytes(_SUMMARY_VALUE, value) for value in values)
        self._append(_key(_STEP, _VARINT) + _varint(step) + _bytes(_SUMMARY, summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, fields: bytes) -> None:
        """Appends a record: length, its checksum, the event, its checksum."""
        event = _key(_WALL_TIME, _DOUBLE) + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(event))
        append_whole(self._file, length + _checksum(length) + event + _checksum(event))


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(number: int) -> bytes:
    """Encodes seven bits per byte, lowest first; the high bit means that another byte follows."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _float32(value: float) -> bytes:
    # struct raises OverflowError for a number that is finite in double precision only, such as a perplexity of 1e40.
    return struct.pack("<f", math.copysign(math.inf, value) if abs(value) > LARGEST_FLOAT32 else value)


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


_CRC_TABLE = _crc_table()


def _checksum(data: bytes) -> bytes:
    """Returns the CRC-32C of `data`, masked as TFRecord requires, in little-endian bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
