"""Finds the tensors of a model in its protobuf bytes, without parsing the model.

Unlike the reader of the io room this walk judges nothing: every range of bytes it reports may be
cut out and put back, so merged fields or odd encodings cost at most some compression. A message
it cannot read is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

_WINDOW = 4096
_MAX_DEPTH = 90
_MAX_NAME = 1 << 16
_MAX_DIMS = 1 << 10

MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, FUNCTION, SPARSE, TRAINING = range(8)

_NESTED: dict[int, dict[int, int]] = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    TENSOR: {},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TRAINING: {1: GRAPH, 2: GRAPH},
}
_TYPED = frozenset((4, 5, 6, 7, 10, 11))
_AS_RAW = {4: (1, 14), 10: (11, 15)}
"""Typed fields that hold, when packed, the same bytes as ``raw_data`` for these types."""
_EXTERNAL = 1


class Readable(Protocol):
    """Bytes that can be read anywhere."""

    @property
    def size(self) -> int:
        """Number of bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        ...

    def peek(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes, at least one: those that cost little to read."""
        ...


@dataclass
class FoundTensor:
    """A TensorProto.

    ``raw`` is (offset, length) of its values in the file, if they are in ``raw_data``, or in a
    typed field that holds the same bytes (packed ``float_data`` and ``double_data``).
    """

    name: str = ""
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None
    typed_bytes: int = 0
    external: dict[str, str] | None = None


class UnreadableError(Exception):
    """The bytes are not a protobuf message, or not one this walk handles."""


@dataclass(frozen=True)
class _Field:
    number: int
    wire: int
    value: int
    begin: int
    end: int


class Walk:
    """One walk over the bytes of a model. ``is_model`` tells afterwards whether it was one."""

    def __init__(self, source: Readable, smallest: int = 0) -> None:
        """Report tensors with at least ``smallest`` bytes of raw data, and external ones."""
        self._source = source
        self._smallest = smallest
        self._start = 0
        self._data = b""
        self.is_model = False

    def tensors(self) -> Iterator[FoundTensor]:
        """Yield the tensors in the order of their bytes."""
        try:
            yield from self._message(MODEL, 0, self._source.size, 0, "")
        except UnreadableError:
            self.is_model = False

    def _message(
        self, kind: int, start: int, end: int, depth: int, owner: str
    ) -> Iterator[FoundTensor]:
        nested = _NESTED[kind]
        for item in self._fields(start, end):
            if kind == NODE and item.number == 2 and item.wire == 2 and not owner:
                owner = self._text(item)  # a tensor of a Constant goes by the node's output
            if item.wire != 2 or item.number not in nested:
                continue
            inner = nested[item.number]
            self.is_model = self.is_model or (kind == MODEL and inner == GRAPH)
            if depth >= _MAX_DEPTH or self._is_idle(item):
                continue
            label = owner if inner in (ATTRIBUTE, TENSOR, SPARSE) else ""
            try:
                if inner == TENSOR:
                    yield self._tensor(item, label)
                else:
                    yield from self._message(inner, item.begin, item.end, depth + 1, label)
            except UnreadableError:
                continue

    def _is_idle(self, item: _Field) -> bool:
        """Whether a short message surely holds nothing to report."""
        length = item.end - item.begin
        if length >= self._smallest or length > _WINDOW:
            return False
        return b"location" not in self._source.read(item.begin, length)

    def _tensor(self, message: _Field, owner: str) -> FoundTensor:
        found = FoundTensor(name=owner)
        entries: dict[str, str] = {}
        location = 0
        typed: list[_Field] = []
        for item in self._fields(message.begin, message.end):
            if item.number == 1:
                self._add_dims(item, found.shape)
            elif item.number == 2 and item.wire == 0:
                found.dtype = item.value
            elif item.number == 8 and item.wire == 2:
                found.name = self._text(item) or owner
            elif item.number == 9 and item.wire == 2:
                found.raw = (item.begin, item.end - item.begin)
            elif item.number == 13 and item.wire == 2:
                key, value = self._entry(item)
                entries[key] = value
            elif item.number == 14 and item.wire == 0:
                location = item.value
            elif item.number in _TYPED:
                typed.append(item)
        if location == _EXTERNAL:
            found.external = entries
        _add_typed(found, typed)
        return found

    def _add_dims(self, item: _Field, shape: list[int]) -> None:
        if item.wire == 0:
            shape.append(_signed(item.value))
        elif item.wire == 2:
            position = item.begin
            while position < item.end and len(shape) <= _MAX_DIMS:
                value, position = self._varint(position, item.end)
                shape.append(_signed(value))
        if len(shape) > _MAX_DIMS:
            raise UnreadableError

    def _entry(self, item: _Field) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for part in self._fields(item.begin, item.end):
            if part.wire == 2 and part.number in texts:
                texts[part.number] = self._text(part)
        return texts[1], texts[2]

    def _text(self, item: _Field) -> str:
        if item.end - item.begin > _MAX_NAME:
            raise UnreadableError
        return self._source.read(item.begin, item.end - item.begin).decode(errors="replace")

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        position = start
        while position < end:
            tag, begin = self._varint(position, end)
            wire, value = tag & 7, 0
            if wire == 2:
                length, begin = self._varint(begin, end)
                stop = begin + length
            elif wire == 0:
                value, stop = self._varint(begin, end)
            elif wire in (1, 5):
                stop = begin + (8 if wire == 1 else 4)
            else:
                raise UnreadableError  # groups: no exporter writes them
            if stop > end or not tag >> 3:
                raise UnreadableError
            yield _Field(tag >> 3, wire, value, begin, stop)
            position = stop

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            offset = position - self._start
            if not 0 <= offset < len(self._data):
                self._data = self._source.peek(position, min(_WINDOW, self._source.size - position))
                self._start, offset = position, 0
            byte = self._data[offset]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise UnreadableError


def _add_typed(found: FoundTensor, typed: list[_Field]) -> None:
    """Take values in typed fields as raw ones where they are the same bytes."""
    single = typed[0] if len(typed) == 1 else None
    free = found.raw is None and found.external is None
    if free and single and single.wire == 2 and found.dtype in _AS_RAW.get(single.number, ()):
        found.raw = single.begin, single.end - single.begin
        return
    found.typed_bytes = sum(item.end - item.begin for item in typed)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
