"""The zstandard settings this room uses, one compressor for each thread."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import TYPE_CHECKING

from onnxslim.errors import PackError

if TYPE_CHECKING:
    import zstandard

_local = threading.local()

ENTROPY = "entropy"
"""Almost no matches are found, so that the bytes are Huffman-coded and little else."""

_MAX_WINDOW = 1 << 23


def _module() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise PackError(
            "this needs the package 'zstandard'; install it, or pack with the profile 'stdlib'"
        ) from None
    return zstandard


def check_available() -> None:
    """Raise PackError if zstandard is not installed."""
    _module()


def _compressor(mode: str) -> zstandard.ZstdCompressor:
    known: dict[str, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if mode not in known:
        module = _module()
        if mode == ENTROPY:
            parameters = module.ZstdCompressionParameters(
                window_log=17,
                hash_log=6,
                chain_log=6,
                min_match=7,
                strategy=module.STRATEGY_FAST,
                write_content_size=True,
                write_checksum=False,
            )
        else:
            parameters = module.ZstdCompressionParameters.from_level(
                int(mode), write_content_size=True, write_checksum=False
            )
        known[mode] = module.ZstdCompressor(compression_params=parameters)
    return known[mode]


def compress(data: bytes | memoryview, mode: str) -> bytes:
    """Return one zstd frame; ``mode`` is ENTROPY or a level as text."""
    return _compressor(mode).compress(data)


def decompress(payload: bytes | memoryview, length: int, where: str) -> bytes:
    """Decode one zstd frame that must hold exactly ``length`` bytes.

    The size that the frame states is compared first: the decoder would allocate it, whatever
    limit it is given.

    Raises:
        PackError: another size, a damaged frame, or bytes after it.
    """
    module = _module()
    try:
        stated = module.get_frame_parameters(payload)
        if stated.content_size != length or stated.window_size > _MAX_WINDOW or stated.dict_id:
            raise PackError(
                f"{where}: the zstd frame states {stated.content_size} bytes, expected {length}; "
                "the file is damaged or hostile"
            )
        if not hasattr(_local, "decompressor"):
            _local.decompressor = module.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        data: bytes = _local.decompressor.decompress(payload, allow_extra_data=False)
    except module.ZstdError as error:
        raise PackError(f"{where}: the zstd data is damaged ({error})") from None
    if len(data) != length:
        raise PackError(f"{where}: the zstd data has {len(data)} bytes, expected {length}")
    return data
