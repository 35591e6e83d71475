"""The walk over the wire format agrees with protobuf, on damaged models too."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from onnxslim.errors import ModelLoadError
from onnxslim.io.source import MemorySource
from onnxslim.io.wire import field_bytes, strip, varint

TOKEN = "token-for-the-test-"


def tensor(name: str, size: int = 300) -> TensorProto:
    return numpy_helper.from_array(np.arange(size, dtype=np.float32), name)


def nested() -> onnx.ModelProto:
    """Weights at every place the walk descends to."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=tensor("in then"))],
        "inner",
        [],
        [helper.make_tensor_value_info("k", 1, [300])],
        [tensor("inner init")],
    )
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["i"], then_branch=inner, else_branch=inner)],
        "outer",
        [],
        [helper.make_tensor_value_info("i", 1, None)],
    )
    many = helper.make_node("Many", [], ["m"], domain="d")
    many.attribute.add(name="ts", type=9).tensors.extend([tensor("t0"), tensor("t1", 3)])
    many.attribute.add(name="gs", type=10).graphs.append(inner)
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["o"], then_branch=outer, else_branch=outer), many],
        "main",
        [],
        [helper.make_tensor_value_info("o", 1, None)],
        [tensor("w"), tensor("small", 2), numpy_helper.from_array(np.array(True), "c")],
    )
    function = helper.make_function(
        "d", "F", [], ["f"], [many], [helper.make_opsetid("", 17)], [],
        [helper.make_attribute("default", tensor("default"))],
    )  # fmt: skip
    return helper.make_model(
        graph, functions=[function], opset_imports=[helper.make_opsetid("", 17)]
    )


def tensors(message: Message) -> Iterator[TensorProto]:
    """Every TensorProto anywhere inside."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if isinstance(value, (list,)) or hasattr(value, "add") else [value]:
                yield from tensors(item)


def restored(data: bytes) -> tuple[onnx.ModelProto, int]:
    """Strip, parse, and put the data back; also return how many tensors were stripped."""
    skeleton = strip(MemorySource(data, "it"), TOKEN)
    model = onnx.ModelProto.FromString(skeleton.data)
    for item in tensors(model):
        location = next((e.value for e in item.external_data), "")
        if location.startswith(TOKEN):
            place = skeleton.ranges[int(location[len(TOKEN) :])]
            assert place.length >= 1024
            del item.external_data[:]
            item.ClearField("data_location")
            item.raw_data = place.source.read(place.offset, place.length)
    return model, len(skeleton.ranges)


def agree(data: bytes) -> bool:
    """Compare with protobuf; return whether it is a model."""
    try:
        expected = onnx.ModelProto.FromString(data)
    except DecodeError:
        expected = None
    try:
        actual, _ = restored(data)
    except (DecodeError, ModelLoadError):
        actual = None
    assert (actual is None) == (expected is None)
    if expected is not None:
        # bytes, not ==: NaN is not equal to itself, and unknown fields count
        assert actual is not None
        left, right = (m.SerializeToString(deterministic=True) for m in (actual, expected))
        assert left == right
    return expected is not None


def test_everything_large_is_stripped() -> None:
    data = nested().SerializeToString()
    model, stripped = restored(data)
    assert model == nested()
    large = [item for item in tensors(nested()) if len(item.raw_data) >= 1024]
    assert stripped == len(large) == 16
    assert len(strip(MemorySource(data, "it"), TOKEN).data) < len(data) - 1200 * stripped + 2000


def test_truncations() -> None:
    data = nested().SerializeToString()
    ends = random.Random(0).sample(range(20, len(data)), 700)
    assert not any(agree(data[:end]) for end in ends)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change bytes, mostly in the places that hold structure rather than weights."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        position = rng.randrange(len(out))
        kind = rng.randrange(6)
        if kind == 0:
            out[position] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[position] = rng.choice((0, 0x7F, 0x80, 0xFF, 0x4A, 0x2A, 0x3A, 0x0B, 0x0C))
        elif kind == 2:
            del out[position : position + rng.randrange(1, 9)]
        elif kind == 3:
            out[position:position] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            other = rng.randrange(len(out))
            out[position:position] = out[other : other + rng.randrange(1, 3000)]
        else:
            del out[position:]
        if not out:
            break
    return bytes(out)


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_a_nested_model(seed: int) -> None:
    rng = random.Random(seed)
    data = nested().SerializeToString()
    # structure is sparse among the weights: half of the mutations hit a model with few of them
    model = nested()
    del model.graph.node[1:], model.functions[:]
    few = model.SerializeToString()
    valid = sum(agree(mutate(rng.choice((data, few)), rng)) for _ in range(1500))
    assert 100 < valid < 1400  # both kinds were met


def test_mutations_of_structure() -> None:
    """Tags and lengths only: the header of every message on the way to a weight."""
    data = nested().SerializeToString()
    skeleton = strip(MemorySource(data, "it"), TOKEN)
    near = [place.offset - back for place in skeleton.ranges for back in range(1, 40)]
    rng = random.Random(7)
    valid = 0
    for _ in range(2500):
        out = bytearray(data)
        out[rng.choice(near)] = rng.randrange(256)
        valid += agree(bytes(out))
    assert 100 < valid < 2400


RAW = np.arange(300, dtype=np.float32).tobytes()


def in_model(tensor_bytes: bytes) -> bytes:
    return b"\x08\x08" + field_bytes(7, field_bytes(5, tensor_bytes))


@pytest.mark.parametrize(
    ("tensor_bytes", "stripped"),
    [
        (field_bytes(9, RAW) + b"\x08\xac\x02\x10\x01", 1),  # raw data before dims
        (field_bytes(9, b"x" * 2000) + field_bytes(9, RAW), 1),  # twice: the last counts
        (field_bytes(9, RAW) + field_bytes(9, b"tiny"), 0),
        (b"\x0a\x02\xac\x02" + field_bytes(9, RAW), 1),  # packed dims
        (b"\x0b\x08\x01\x0c" + field_bytes(9, RAW), 0),  # a group
        (b"\x8a\x80\x80\x80\x00\x01a" + field_bytes(9, RAW), 1),  # tag in five bytes
        (b"\x8a\x80\x80\x80\x80\x00\x01a" + field_bytes(9, RAW), None),  # in six
        (b"\x4a\xb0\x89\x80\x80\x00" + RAW, 1),  # length in five bytes
        (b"\x48\x05" + field_bytes(9, RAW), 1),  # raw data with another wire type
        (field_bytes(9, RAW) + b"\x70\x01", 0),  # says that it is external
        (field_bytes(9, RAW) + field_bytes(13, b""), 0),
        (field_bytes(9, RAW) + field_bytes(3, b""), 0),  # a segment
        (b"\x00" + field_bytes(9, RAW), None),  # field number 0
        (b"\x4d" + b"1234" + field_bytes(9, RAW), 1),
    ],
)
def test_odd_encodings(tensor_bytes: bytes, stripped: int | None) -> None:
    data = in_model(tensor_bytes)
    assert agree(data) == (stripped is not None)
    if stripped is not None:
        assert restored(data)[1] == stripped


def test_singular_messages_given_twice() -> None:
    graph = field_bytes(5, field_bytes(9, RAW))
    assert agree(field_bytes(7, graph) + field_bytes(7, field_bytes(2, b"name")))
    assert restored(field_bytes(7, graph) + field_bytes(7, graph))[0].graph.initializer[1].raw_data
    tensor_field = field_bytes(5, field_bytes(9, RAW))
    node = field_bytes(1, field_bytes(5, tensor_field + field_bytes(5, b"\x10\x01")))
    assert agree(field_bytes(7, node))


def test_deep_nesting() -> None:
    for depth in (20, 30, 40):
        graph = field_bytes(5, field_bytes(9, RAW))
        for _ in range(depth):
            graph = field_bytes(1, field_bytes(5, field_bytes(6, graph)))
        agree(field_bytes(7, graph))


def test_varint() -> None:
    for value in (0, 1, 127, 128, 300, 2**32, 2**63):
        assert varint(value) == field_bytes(0, b"")[:0] + _reference_varint(value)


def _reference_varint(value: int) -> bytes:
    model = onnx.ModelProto(model_version=value - 2**64 if value >= 2**63 else value)
    return bytes(model.SerializeToString()[1:])
