"""Walks the protobuf wire format of a model without parsing it.

:func:`strip` reads a file into a *skeleton*: the same model, with each large ``raw_data`` replaced
by a reference to where its bytes lie. Its mirror image is in :mod:`onnxslim.io.splice`.

The walk knows only the nesting of messages that can hold a tensor. Whatever is unusual (groups,
overlong varints, a singular message given twice, deep nesting) raises :class:`OddEncoding`, and
protobuf itself gets the bytes: speed is for what every exporter writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxslim.errors import ModelLoadError
from onnxslim.io.source import Source

MIN_TENSOR_BYTES = 1024
"""Data of at least this many bytes stays in the file; smaller data is read like anything else."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""Protobuf refuses messages longer than this."""

_WINDOW = 4096
_MAX_DEPTH = 90  # protobuf gives up at 100; leave the exact limit to it

MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, FUNCTION = range(6)

# kind -> field number -> (kind of the embedded message, whether the field is singular)
NESTED: dict[int, dict[int, tuple[int, bool]]] = {
    MODEL: {7: (GRAPH, True), 25: (FUNCTION, False)},
    GRAPH: {1: (NODE, False), 5: (TENSOR, False)},
    NODE: {5: (ATTRIBUTE, False)},
    ATTRIBUTE: {5: (TENSOR, True), 6: (GRAPH, True), 10: (TENSOR, False), 11: (GRAPH, False)},
    FUNCTION: {7: (NODE, False), 11: (ATTRIBUTE, False)},
    TENSOR: {},
}
RAW_DATA = 9
_LEFT_WHOLE = (3, 13, 14)  # segment, external_data, data_location


class OddEncoding(Exception):  # noqa: N818  (a signal, not an error)
    """The bytes may be valid, but not in a way this walk handles."""


@dataclass(frozen=True)
class Range:
    """``length`` bytes at ``offset`` of ``source``."""

    source: Source
    offset: int
    length: int


@dataclass
class Skeleton:
    """A serialized model without its large data.

    ``data`` is protobuf; a stripped tensor has the external location ``token`` + index, and
    ``ranges[index]`` says where its bytes are.
    """

    data: bytes
    token: str
    ranges: list[Range] = field(default_factory=list)


def varint(value: int) -> bytes:
    """Encode a non-negative integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_bytes(number: int, payload: bytes) -> bytes:
    """Encode a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


@dataclass(frozen=True)
class Field:
    """One field on the wire: the tag at ``start``, the payload from ``begin`` to ``end``."""

    number: int
    wire: int
    start: int
    begin: int
    end: int


class _Window:
    """Reads small pieces of a source through one buffer, so that skipped data is never touched."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._start = 0
        self._data = b""

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message in ``[start, end)``.

        Raises:
            ModelLoadError: a field leaves its parent.
            OddEncoding: groups, or numbers written longer than needed.
        """
        position = start
        while position < end:
            tag, begin = self._varint(position, end, 5)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                length, begin = self._varint(begin, end, 5)
                stop = begin + length
            elif wire == 0:
                _, stop = self._varint(begin, end, 10)
            elif wire in (1, 5):
                stop = begin + (8 if wire == 1 else 4)
            else:
                raise OddEncoding
            if stop > end:
                raise ModelLoadError(
                    f"{self._source.label} is truncated or not an ONNX model (a field at byte "
                    f"{position} runs past its end)"
                )
            yield Field(number, wire, position, begin, stop)
            position = stop

    def _varint(self, position: int, end: int, limit: int) -> tuple[int, int]:
        value = shift = 0
        for place in range(position, min(position + limit, end)):
            offset = place - self._start
            if not 0 <= offset < len(self._data):
                size = min(_WINDOW, self._source.size - place)
                self._data = self._source.peek(place, size)
                self._start, offset = place, 0
            byte = self._data[offset]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place + 1
            shift += 7
        raise OddEncoding  # cut short or overlong: protobuf decides which


class _Stripper:
    """Builds the skeleton of one source, innermost messages first."""

    def __init__(self, source: Source, skeleton: Skeleton) -> None:
        self._source = source
        self._skeleton = skeleton
        self._window = _Window(source)

    def message(self, kind: int, start: int, end: int, depth: int) -> list[bytes] | None:
        """Return the stripped message in pieces, or None if nothing in it was stripped."""
        if depth > _MAX_DEPTH:
            raise OddEncoding
        nested = NESTED[kind]
        pieces: list[bytes] = []
        copied = start
        seen: set[int] = set()
        for item in self._window.fields(start, end):
            if item.wire != 2 or item.number not in nested:
                continue
            inner, singular = nested[item.number]
            if singular and item.number in seen:
                raise OddEncoding  # protobuf merges the two
            seen.add(item.number)
            if item.end - item.begin < MIN_TENSOR_BYTES:
                continue
            handle = self._tensor if inner == TENSOR else self.message
            new = handle(inner, item.begin, item.end, depth + 1)
            if new is None:
                continue
            pieces.append(self._source.read(copied, item.start - copied))
            pieces.append(varint(item.number << 3 | 2) + varint(sum(map(len, new))))
            pieces.extend(new)
            copied = item.end
        if copied == start:
            return None
        pieces.append(self._source.read(copied, end - copied))
        return pieces

    def _tensor(self, kind: int, start: int, end: int, depth: int) -> list[bytes] | None:
        raws: list[Field] = []
        for item in self._window.fields(start, end):
            if item.number in _LEFT_WHOLE:
                return None
            if item.number == RAW_DATA and item.wire == 2:
                raws.append(item)
        if not raws or raws[-1].end - raws[-1].begin < MIN_TENSOR_BYTES:
            return None
        pieces = []
        copied = start
        for item in raws:  # the last one counts, as in protobuf
            pieces.append(self._source.read(copied, item.start - copied))
            copied = item.end
        pieces.append(self._source.read(copied, end - copied))
        skeleton = self._skeleton
        location = f"{skeleton.token}{len(skeleton.ranges)}".encode()
        entry = field_bytes(1, b"location") + field_bytes(2, location)
        pieces.append(field_bytes(13, entry) + varint(14 << 3) + b"\x01")
        last = raws[-1]
        skeleton.ranges.append(Range(self._source, last.begin, last.end - last.begin))
        return pieces


def strip(source: Source, token: str) -> Skeleton:
    """Return the skeleton of the model in ``source``; unusual encodings come back whole.

    Raises:
        ModelLoadError: truncated, or an unusual encoding of more than 2 GiB.
    """
    skeleton = Skeleton(b"", token)
    try:
        pieces = _Stripper(source, skeleton).message(MODEL, 0, source.size, 0)
    except OddEncoding:
        pieces = None
        skeleton.ranges.clear()
    size = source.size if pieces is None else sum(map(len, pieces))
    if size > MAX_MESSAGE_BYTES:
        raise ModelLoadError(
            f"{source.label} is not an ONNX model, or holds over 2 GiB that are not weights "
            "as raw data"
        )
    skeleton.data = source.read(0, source.size) if pieces is None else b"".join(pieces)
    return skeleton
