"""Every model that comes with the onnx package goes through load and save unchanged."""

from __future__ import annotations

import io as stdio
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx.backend.test.case.node import collect_testcases

from onnxslim import io


def corpus() -> Iterator[tuple[str, onnx.ModelProto]]:
    for case in collect_testcases(None):
        if case.model is not None:
            yield case.name, case.model
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(folder.rglob("*.onnx")):
        if path.stat().st_size:
            yield str(path.relative_to(folder)), onnx.load(path)


def normal(message: Message) -> None:
    """Drop what says nothing (``domain: ""``) and sort what has no order (value_info)."""
    for field, value in message.ListFields():
        if field.name == "value_info":
            infos = sorted(value, key=lambda info: str(info.name))
            message.ClearField("value_info")
            getattr(message, field.name).extend(infos)
            value = getattr(message, field.name)
        if field.message_type is not None:
            for item in value if hasattr(value, "add") else [value]:
                normal(item)
        elif value == "":
            message.ClearField(field.name)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from making the package's cases
def test_corpus_round_trip() -> None:
    different = []
    count = 0
    for name, proto in corpus():
        count += 1
        stream = stdio.BytesIO()
        saved = io.save(io.load(proto.SerializeToString()), stream)
        assert saved.bytes == len(stream.getvalue())
        result = onnx.ModelProto.FromString(stream.getvalue())
        expected = onnx.ModelProto.FromString(proto.SerializeToString())
        normal(expected)
        normal(result)
        if result.SerializeToString() != expected.SerializeToString():
            different.append(name)
    assert different == []
    assert count > 1500
