"""Turns a serialized skeleton into a plan for a stream in which the large data stands again.

Each placeholder is found by its random token; only the messages around one are walked, and only
their length prefixes change.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxslim.io.wire import MODEL, NESTED, RAW_DATA, TENSOR, Field, varint

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
        nested = NESTED[kind].get(item.number)
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
