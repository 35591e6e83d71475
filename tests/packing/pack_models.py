"""Models and packed files for the tests of this room."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxslim.packing.layout import END_MAGIC, MAGIC

FLOAT_TYPES = {"FLOAT": 4, "FLOAT16": 2, "BFLOAT16": 2, "DOUBLE": 8, "COMPLEX64": 8}


def raw_tensor(name: str, dtype: int, dims: list[int], data: bytes) -> TensorProto:
    return TensorProto(name=name, data_type=dtype, dims=dims, raw_data=data)


def normal(count: int, dtype: str = "FLOAT", seed: int = 0) -> bytes:
    """Raw bytes of normally distributed elements."""
    values = np.random.default_rng(seed).standard_normal(count).astype("<f4") * np.float32(0.05)
    if dtype == "BFLOAT16":
        return (values.view("<u4") >> 16).astype("<u2").tobytes()
    if dtype == "COMPLEX64":
        return np.repeat(values, 2).tobytes()
    return values.astype({"FLOAT": "<f4", "FLOAT16": "<f2", "DOUBLE": "<f8"}[dtype]).tobytes()


def model_of(tensors: list[TensorProto], nodes: list[onnx.NodeProto] | None = None, **more: Any):
    graph = helper.make_graph(nodes or [], "graph", [], [], initializer=tensors)
    return helper.make_model(graph, **more)


def written(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def all_dtypes() -> onnx.ModelProto:
    """A tensor of every type, of odd sizes, with data of no particular distribution."""
    rng = np.random.default_rng(1)
    tensors = []
    for name, number in TensorProto.DataType.items():
        if name in ("UNDEFINED", "STRING"):
            continue
        for count in (0, 1, 7, 1023, 5001):
            bits = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.get(name)
            width = {"FLOAT": 4, "INT32": 4, "UINT32": 4, "INT64": 8, "UINT64": 8, "DOUBLE": 8}
            width |= {"COMPLEX64": 8, "COMPLEX128": 16, "FLOAT16": 2, "BFLOAT16": 2}
            width |= {"INT16": 2, "UINT16": 2}
            size = -(-count * bits // 8) if bits else count * width.get(name, 1)
            data = rng.integers(0, 7 if count == 5001 else 256, size, dtype=np.uint8).tobytes()
            dims = [] if count == 1 else [count]
            tensors.append(raw_tensor(f"{name}_{count}", number, dims, data))
    strings = TensorProto(name="s", data_type=8, dims=[2], string_data=[b"a" * 3000, b"\xff\x00"])
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [900], np.arange(900.0))
    return model_of([*tensors, strings, typed])


def nested() -> onnx.ModelProto:
    """Weights in Constant attributes, both branches of an If, a function and sparse tensors."""

    def constant(output: str, seed: int) -> onnx.NodeProto:
        value = raw_tensor("", 1, [100, 80], normal(8000, seed=seed))
        return helper.make_node("Constant", [], [output], value=value)

    def branch(name: str, seed: int) -> onnx.GraphProto:
        initializer = raw_tensor(f"{name}_w", 1, [100, 80], normal(8000, seed=seed))
        add = helper.make_node("Add", [f"{name}_c", f"{name}_w"], [f"{name}_y"])
        info = helper.make_tensor_value_info(f"{name}_y", 1, [100, 80])
        return helper.make_graph(
            [constant(f"{name}_c", seed + 1), add], name, [], [info], initializer=[initializer]
        )

    choice = helper.make_node(
        "If", ["p"], ["y"], then_branch=branch("then", 1), else_branch=branch("else", 5)
    )
    body = [constant("f_w", 9), helper.make_node("Add", ["x", "f_w"], ["z"])]
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function("own", "F", ["x"], ["z"], body, opsets)
    model = model_of(
        [raw_tensor("p", 9, [], b"\1")],
        [constant("c", 11), choice],
        functions=[function],
        opset_imports=[*opsets, helper.make_opsetid("own", 1)],
    )
    sparse = onnx.SparseTensorProto(dims=[9000])
    sparse.values.CopyFrom(raw_tensor("sparse", 1, [3000], normal(3000, seed=13)))
    sparse.indices.CopyFrom(raw_tensor("", 7, [3000], np.arange(3000, dtype="<i8").tobytes()))
    model.graph.sparse_initializer.append(sparse)
    return model


def with_data_files(folder: Path) -> tuple[Path, list[str]]:
    """A model with two data files, one in a subfolder, with gaps and with tied tensors."""
    (folder / "deep").mkdir(parents=True)
    places = {"weights.bin": bytearray(b"head" * 25), "deep/more.data": bytearray()}
    tensors = []
    for number in range(6):
        location = "weights.bin" if number % 2 else "deep/more.data"
        data = normal(50_000, seed=number)
        offset = len(places[location])
        places[location] += data + b"\0" * 37
        entries = {"location": location, "offset": str(offset), "length": str(len(data))}
        for name in (f"w{number}", f"tied{number}"):
            tensor = TensorProto(name=name, data_type=1, dims=[50_000], data_location=1)
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
            tensors.append(tensor)
    for location, content in places.items():
        (folder / location).write_bytes(bytes(content))
    return written(model_of(tensors), folder / "model.onnx"), sorted(places)


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def frame(kind: int, codec: int, number: int, raw: int, payload: bytes, crc: int) -> bytes:
    head = struct.pack("<BBHIIIII", kind, codec, 0, number, raw, len(payload), crc, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "little") + payload


def table(kind: int, number: int, payload: bytes) -> bytes:
    return frame(kind, 0, number, len(payload), payload, zlib.crc32(payload))


Frame = tuple[int, int, int, int, bytes, int]


def manifest_bytes(
    blobs: list[tuple[int, int, bytes]],
    files: list[tuple[bytes, int, bytes, list[tuple[int, int]]]],
) -> bytes:
    out = varint(0) + varint(len(blobs))  # no tensors of a base
    for length, chunk, sha in blobs:
        out += varint(length) + varint(chunk) + sha + b"\0"
    out += varint(len(files))
    for name, size, sha, splices in files:
        out += varint(len(name)) + name + varint(size) + sha + varint(len(splices))
        for gap, blob in splices:
            out += varint(gap) + varint(blob)
    return out


def packed_by_hand(manifest: bytes, frames: list[Frame]) -> bytes:
    """A packed file written from the specification, not by the product."""
    index = b"".join(bytes([item[1]]) + varint(len(item[4])) for item in frames)
    body = MAGIC + table(1, 0, manifest) + b"".join(frame(*item) for item in frames)
    sha = hashlib.sha256(manifest + index).digest()
    footer = struct.pack("<QQ32s8s", len(body), len(index), sha, END_MAGIC)
    return body + table(4, len(frames), index) + footer


def plain_pack(data: bytes, name: bytes = b"") -> bytes:
    """A pack of one small file stored as it is; ``name`` adds a data file of that name."""
    sha = hashlib.sha256(data).digest()
    files: list[tuple[bytes, int, bytes, list[tuple[int, int]]]] = [(b"", len(data), sha, [])]
    frames: list[Frame] = [(2, 0, 0, len(data), data, zlib.crc32(data))]
    if name:
        files.append((name, 4, hashlib.sha256(b"side").digest(), []))
        frames.append((2, 0, 1, 4, b"side", zlib.crc32(b"side")))
    return packed_by_hand(manifest_bytes([], files), frames)
