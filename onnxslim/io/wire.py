"""Walks the protobuf wire format of a model without parsing it.

Two uses, mirror images: :func:`strip` reads a file into a *skeleton* (the same model, with each
large ``raw_data`` replaced by a reference to where its bytes lie), :func:`splice` turns a
serialized skeleton back into a stream in which the large data stands again.

The walk knows only the nesting of messages that can hold a tensor. Whatever is unusual (groups,
overlong varints, a singular message given twice, deep nesting) raises :class:`OddEncoding`, and
protobuf itself gets the bytes: speed is for what every exporter writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
_NESTED: dict[int, dict[int, tuple[int, bool]]] = {
    MODEL: {7: (GRAPH, True), 25: (FUNCTION, False)},
    GRAPH: {1: (NODE, False), 5: (TENSOR, False)},
    NODE: {5: (ATTRIBUTE, False)},
    ATTRIBUTE: {5: (TENSOR, True), 6: (GRAPH, True), 10: (TENSOR, False), 11: (GRAPH, False)},
    FUNCTION: {7: (NODE, False), 11: (ATTRIBUTE, False)},
    TENSOR: {},
}
RAW_DATA = 9
_EXTERNAL_FIELDS = (13, 14)


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
        offset = position - self._start
        if offset < 0 or offset + 10 > len(self._data):
            size = min(_WINDOW, self._source.size - position)
            self._data = self._source.read(position, size)
            self._start, offset = position, 0
        value = shift = 0
        for index in range(offset, min(offset + limit, offset + end - position)):
            byte = self._data[index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, self._start + index + 1
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
        nested = _NESTED[kind]
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
            if item.number in _EXTERNAL_FIELDS:
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


Piece = bytes | int
"""Of a spliced stream: literal bytes, or the index of the tensor whose data stands there."""


class _Splicer:
    """Finds placeholders in a serialized skeleton and corrects the lengths around them."""

    def __init__(self, data: bytes, token: bytes, length_of: Callable[[int], int]) -> None:
        self._data = data
        self._view = memoryview(data)
        self._token = token
        self._length_of = length_of
        self._next = data.find(token)

    def message(self, kind: int, start: int, end: int) -> tuple[list[Piece], int]:
        """Return the pieces of the message in ``[start, end)`` and their total length."""
        pieces: list[Piece] = []
        total = 0
        copied = position = start
        while start <= self._next < end:
            item = self._field_with_token(position, end)
            position = item.end
            inner, size = self._content(kind, item)
            if inner is None:
                self._next = self._data.find(self._token, item.end)
                continue
            head = self._data[copied : item.start] + varint(item.number << 3 | 2) + varint(size)
            pieces.append(head)
            pieces.extend(inner)
            total += len(head) + size
            copied = item.end
        tail = self._data[copied:end]
        pieces.append(tail)
        return pieces, total + len(tail)

    def _content(self, kind: int, item: Field) -> tuple[list[Piece] | None, int]:
        if kind == TENSOR and item.number == RAW_DATA:
            tail = self._data[item.begin + len(self._token) : item.end]
            index = int.from_bytes(tail, "big")
            self._next = self._data.find(self._token, item.end)
            return [index], self._length_of(index)
        nested = _NESTED[kind].get(item.number)
        if nested is None:
            return None, 0
        return self.message(nested[0], item.begin, item.end)

    def _field_with_token(self, position: int, end: int) -> Field:
        """Skip to the field that holds the next token. Protobuf wrote this: no checks needed."""
        target = self._next
        while position < end:
            number, wire, begin, stop = _plain_field(self._view, position)
            if stop > target:
                return Field(number, wire, position, begin, stop)
            position = stop
        raise AssertionError("a placeholder outside every field")


def _plain_field(view: memoryview, position: int) -> tuple[int, int, int, int]:
    """Return number, wire type, begin and end of the payload of a field that protobuf wrote."""
    tag, begin = _plain_varint(view, position)
    wire = tag & 7
    if wire == 2:
        length, begin = _plain_varint(view, begin)
        stop = begin + length
    elif wire == 0:
        _, stop = _plain_varint(view, begin)
    elif wire in (1, 5):
        stop = begin + (8 if wire == 1 else 4)
    elif wire == 3:  # a group, kept among unknown fields; its end is a field of its own
        stop, inner = begin, 3
        while inner != 4:
            _, inner, _, stop = _plain_field(view, stop)
    else:
        stop = begin
    return tag >> 3, wire, begin, stop


def _plain_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def splice(data: bytes, token: bytes, length_of: Callable[[int], int]) -> tuple[list[Piece], int]:
    """Plan the stream of a serialized model whose placeholders are ``token`` + 4 index bytes.

    Args:
        data: The serialized ModelProto.
        token: Random bytes that start each placeholder (in ``raw_data`` of a tensor).
        length_of: Bytes of the tensor with an index.

    Returns:
        The pieces in order, and the total length in bytes.
    """
    return _Splicer(data, token, length_of).message(MODEL, 0, len(data))
