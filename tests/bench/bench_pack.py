"""Ratio and speed of the packed form, beside zstd and zipnn in the same run.

    python tests/bench/bench_pack.py [--megabytes 64] [FILE.onnx ...]

First normally distributed values of each dtype in memory: chunks encoded and decoded one after the
other, MB of raw data for each second of processor time of one thread. Then whole files: packed and
restored by the library, hashes, checks and the disk included, in seconds of processor time of all
threads and of the clock. zstd is given the whole buffer or file. zipnn (which needs torch) takes
part if it can be imported, on the values of floats.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from onnxslim.packing import pack, unpack
from onnxslim.packing.decode import decode
from onnxslim.packing.encode import PROFILES, choose, encode
from onnxslim.packing.plan import chunk_of
from onnxslim.packing.planes import Bytes

_ROUNDS = 3
_SAMPLE = 3 << 14


@dataclass(frozen=True)
class Result:
    """Packed bytes, and the least seconds to encode and to decode."""

    size: int
    encode: float
    decode: float


def timed(work: Callable[[], Any], rounds: int = _ROUNDS) -> tuple[Any, float]:
    """Return the result and the least processor time, of all threads (zipnn starts its own)."""
    least, found = float("inf"), None
    for _ in range(rounds):
        start = time.process_time()
        found = work()
        least = min(least, time.process_time() - start)
    return found, least


def samples(count: int) -> dict[str, tuple[Bytes, int, bool]]:
    """Return bytes, width and whether they are floats, for each kind of values."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(count, dtype=np.float32) * np.float32(0.05)
    codes = np.clip(np.round(values * 800), -127, 127).astype("i1")
    kept = rng.random(count) < 0.2
    made = {
        "fp32": (values.astype("<f4"), True),
        "bf16": ((values.view("<u4") >> 16).astype("<u2"), True),
        "fp16": (values.astype("<f2"), True),
        "int8": (codes, False),
        "fp32, 80 % zeros": (np.where(kept, values, 0).astype("<f4"), True),
        "int8, 80 % zeros": ((codes * kept).astype("i1"), False),
    }
    return {
        name: (array.view(np.uint8), array.itemsize, floats)
        for name, (array, floats) in made.items()
    }


def ours(data: Bytes, width: int, floats: bool, name: str) -> Result:
    """Measure a profile, chunk by chunk."""
    profile = PROFILES[name]
    step = chunk_of(width)
    chunks = [data[start : start + step] for start in range(0, data.size, step)]
    recipes = choose(data[: _SAMPLE * width], width, floats, profile)
    packed, encoding = timed(lambda: [encode(part, width, recipes, profile) for part in chunks])

    def back() -> None:
        for (codec, payload), part in zip(packed, chunks, strict=True):
            decode(codec, payload, part.size, "bench")

    return Result(sum(len(payload) for _, payload in packed), encoding, timed(back)[1])


def zstd(data: Bytes, level: int) -> Result:
    """Measure zstd on the whole buffer."""
    machine, back = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    packed, encoding = timed(lambda: machine.compress(data.data), 1 if level > 9 else _ROUNDS)
    return Result(len(packed), encoding, timed(lambda: back.decompress(packed))[1])


def zipnn(data: Bytes, kind: str) -> Result | None:
    """Measure zipnn on one thread; None where it is not installed or has no such dtype."""
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    try:
        module = importlib.import_module("zipnn")
    except ImportError:
        return None
    dtype = names.get(kind.split(",")[0])
    if dtype is None:
        return None
    machine = module.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    packed, encoding = timed(lambda: machine.compress(bytearray(data)))
    restored, decoding = timed(lambda: machine.decompress(packed))
    assert bytes(restored) == data.tobytes()
    return Result(len(packed), encoding, decoding)


def row(label: str, raw: int, result: Result) -> None:
    """Print one line of the table."""
    speeds = f"{raw / result.encode / 1e6:8.0f} {raw / result.decode / 1e6:8.0f}"
    print(f"{label:34} {raw / result.size:8.3f} {speeds}", flush=True)


def file_row(path: Path, profile: str) -> None:
    """Pack and restore a file; print the ratio and the speeds of the whole commands."""
    raw = path.stat().st_size
    with tempfile.TemporaryDirectory() as name:
        packed, restored = Path(name) / "p.onnxz", Path(name) / "r.onnx"
        times = []
        for work in (
            lambda: pack(path, packed, profile=profile),
            lambda: unpack(packed, restored),
        ):
            start = time.process_time(), time.perf_counter()
            work()
            times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        assert restored.read_bytes() == path.read_bytes()
        size = packed.stat().st_size
    speeds = " ".join(f"{raw / cpu / 1e6:8.0f} {raw / wall / 1e6:8.0f}" for cpu, wall in times)
    whole = path.read_bytes()
    others = [raw / len(zstandard.ZstdCompressor(level=level).compress(whole)) for level in (3, 19)]
    ratios = f"{raw / size:7.3f} {others[0]:7.3f} {others[1]:7.3f}"
    print(f"{path.name[:28]:28} {profile:8} {ratios} {speeds}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--profiles", default="default,max")
    chosen = parser.parse_args()
    if chosen.megabytes:
        print(f"{'values':34} {'ratio':>8} {'encode':>8} {'decode':>8}  MB/s per core")
    for kind, (data, width, floats) in samples((chosen.megabytes << 20) // 4).items():
        if not chosen.megabytes:
            break
        row(f"{kind}: onnxslim", data.size, ours(data, width, floats, "default"))
        row(f"{kind}: onnxslim stdlib", data.size, ours(data, width, floats, "stdlib"))
        for level in (3, 19):
            part = data[: 8 << 20] if level > 9 else data
            row(f"{kind}: zstd-{level}", part.size, zstd(part, level))
        other = zipnn(data, kind)
        if other is not None:
            row(f"{kind}: zipnn", data.size, other)
    if chosen.files:
        heads = "   ratio  zstd-3 zstd-19  pack cpu  clock  unpack cpu clock (MB/s)"
        print(f"{'file':28} {'profile':8} {heads}")
    for path in chosen.files:
        for profile in chosen.profiles.split(","):
            file_row(path, profile)


if __name__ == "__main__":
    main()
