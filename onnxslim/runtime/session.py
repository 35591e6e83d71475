"""Opens a model in onnxruntime and runs it, under options that make two models comparable."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.runtime.specs import Array, InputSpec, runtime_dtype, spec_from_runtime

# Messages are cut here, in characters: onnxruntime repeats whole type lists.
_MESSAGE_LENGTH = 300


class Session:
    """A model that is open in onnxruntime on the CPU.

    Attributes:
        inputs: what it takes, in order.
        output_names: what it gives, in order.
        output_types: their types as onnxruntime writes them: ``tensor(float)``.
    """

    def __init__(self, inner: Any, label: str) -> None:
        self._inner = inner
        self._label = label
        self.inputs: list[InputSpec] = [
            spec_from_runtime(item.name, item.type, list(item.shape)) for item in inner.get_inputs()
        ]
        self.output_names: list[str] = [item.name for item in inner.get_outputs()]
        self.output_types: list[str] = [item.type for item in inner.get_outputs()]
        types = [item.type for item in (*inner.get_inputs(), *inner.get_outputs())]
        self._needs_handles = any(_has_no_numpy_type(text) for text in types)

    def run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        limit: float | None = None,
    ) -> list[Any]:
        """Runs once.

        Args:
            feeds: by input name: an array, a list of arrays for a sequence, None for an empty
                optional.
            outputs: the outputs wanted; what only others need is not computed. None means all.
            limit: seconds after which the run is broken off (a loop that never ends); None waits.

        Returns:
            One item per output, in order: an array, a list of arrays, or None.

        Raises:
            RuntimeRefusedError: onnxruntime does not take the feeds, a kernel fails, or time is up.
        """
        where = f"onnxruntime cannot run {self._label}"
        plain = {
            name: np.asarray(value) if isinstance(value, np.generic) else value
            for name, value in feeds.items()
        }
        with one_line_errors(where), _limited(limit) as options:
            if self._needs_handles:
                return self._run_with_handles(plain, outputs, options)
            return list(self._inner.run(outputs, plain, options))

    def run_views(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Array]:
        """Runs once; the outputs stay in the runtime's own memory, nothing is copied.

        Args:
            feeds: as for `run`.
            outputs: the outputs wanted, all of them tensors.

        Raises:
            RuntimeRefusedError: onnxruntime does not take the feeds, or a kernel fails.
        """
        arrays = [value for value in feeds.values() if isinstance(value, np.ndarray)]
        is_plain = len(arrays) == len(feeds) and all(a.dtype.kind in "fiub" for a in arrays)
        if self._needs_handles or not is_plain:
            return self.run(feeds, outputs)
        with one_line_errors(f"onnxruntime cannot run {self._label}"):
            handles = {name: _to_handle(np.ascontiguousarray(a)) for name, a in feeds.items()}
            results = self._inner.run_with_ort_values(list(outputs), handles)
        return [_view(handle) for handle in results]

    def _run_with_handles(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None, options: Any
    ) -> list[Any]:
        """For element types that numpy lacks (bfloat16, float8): bytes in, bytes out."""
        handles = {name: _to_handle(np.asarray(array)) for name, array in feeds.items()}
        results = self._inner.run_with_ort_values(outputs, handles, options)
        return [_from_handle(handle) for handle in results]


@contextmanager
def _limited(limit: float | None) -> Iterator[Any]:
    """Run options that stop the run after ``limit`` seconds, or None without a limit."""
    if limit is None:
        yield None
        return
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(limit, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    except Exception as error:
        if not options.terminate:
            raise
        raise TimeoutError(f"it did not end within {limit:.0f} s") from error
    finally:
        timer.cancel()


def open_session(
    model: ir.Model | str | os.PathLike[str] | bytes,
    *,
    optimize: bool,
    threads: int = 0,
    spin: bool = True,
    prepack: bool = False,
) -> Session:
    """Opens a model for running on the CPU.

    Weights are not prepacked unless asked for: prepacking changes the last bits of sums, so it must
    be the same for every model that is compared, and without it weights can stay mapped.

    Args:
        model: a graph in memory (its weights stay where they are), a path, or a serialised model.
        optimize: True for the graph optimizations of a deployment, False for the graph as it is.
        threads: threads for one operator; 0 lets onnxruntime choose.
        spin: whether threads without work spin for a while, which is best for latency and takes
            processor time from everything else.
        prepack: bring weights into the order that kernels like, as a deployment does.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    import onnxruntime

    source, folder, label = _runtime_source(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.fspath(folder)
        )
    with one_line_errors(f"onnxruntime cannot open {label}"):
        inner = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return Session(inner, label)


def optimized_copy(model: ir.Model | str | os.PathLike[str], target: Path) -> None:
    """Opens a model with a deployment's optimizations and writes the graph that came out.

    Args:
        model: as for `open_session`.
        target: the file to write; its weights go to ``<target>.data`` beside it.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    import onnxruntime

    source, folder, label = _runtime_source(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = os.fspath(target)
    entries = {
        "session.disable_prepacking": "1",
        "session.optimized_model_external_initializers_file_name": f"{target.name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    }
    if folder is not None:
        entries["session.model_external_initializers_file_folder_path"] = os.fspath(folder)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    with one_line_errors(f"onnxruntime cannot open {label}"):
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _runtime_source(
    model: ir.Model | str | os.PathLike[str] | bytes,
) -> tuple[str | bytes, str | os.PathLike[str] | None, str]:
    if isinstance(model, ir.Model):
        from onnxslim.io import runtime_proto

        data, folder = runtime_proto(model)
        return data, folder, f"the model {model.graph.name or ''}".rstrip()
    if isinstance(model, bytes):
        return model, None, "the model"
    path = os.fspath(model)
    return path, None, path


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turns whatever onnxruntime raises into one line.

    Its exceptions have no common base below Exception, hence the wide net; nothing of ours runs
    inside it.
    """
    try:
        yield
    except Exception as error:
        raise RuntimeRefusedError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an error on one line, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.removeprefix("[ONNXRuntimeError] : ")
    return text if len(text) <= _MESSAGE_LENGTH else text[: _MESSAGE_LENGTH - 1] + "…"


def _has_no_numpy_type(type_text: str) -> bool:
    return any(name in type_text for name in ("bfloat16", "float8", "int4", "int2", "float4"))


def _to_handle(array: Array) -> Any:
    import onnxruntime

    make = onnxruntime.OrtValue
    if array.dtype.kind != "V" and array.dtype.isbuiltin == 1:
        return make.ortvalue_from_numpy(array)
    code = int(ir.DataType.from_numpy(array.dtype))
    plain = np.ascontiguousarray(array).view(np.dtype(f"u{array.dtype.itemsize}"))
    return make.ortvalue_from_numpy_with_onnx_type(plain.reshape(array.shape), code)


def _view(handle: Any) -> Array:
    """A tensor of a type that numpy has, without a copy."""
    dtype = runtime_dtype(handle.data_type()[len("tensor(") : -1])
    size = handle.tensor_size_in_bytes() if dtype not in (None, ir.DataType.STRING) else 0
    if dtype is None or size == 0:
        content: Array = handle.numpy()
        return content
    memory = (ctypes.c_char * size).from_address(handle.data_ptr())
    memory.owner = handle  # type: ignore[attr-defined]  # the array keeps both alive
    array: Array = np.frombuffer(memoryview(memory), dtype.numpy()).reshape(handle.shape())
    return array


def _from_handle(handle: Any) -> Any:
    type_text: str = handle.data_type()
    if not type_text.startswith("tensor("):
        raise ValueError(f"an output of type {type_text} beside bfloat16 or float8 values")
    if not _has_no_numpy_type(type_text):
        return handle.numpy()
    dtype = runtime_dtype(type_text[len("tensor(") : -1])
    if dtype is None:
        raise ValueError(f"outputs of type {type_text} cannot be read back")
    data = ctypes.string_at(handle.data_ptr(), handle.tensor_size_in_bytes())
    codes = np.frombuffer(data, dtype=np.uint8)
    if dtype.bitwidth < 8:
        codes = _unpacked(codes, dtype.bitwidth, math.prod(handle.shape()))
    return codes.view(dtype.numpy()).reshape(handle.shape())


def _unpacked(data: Array, bits: int, size: int) -> Array:
    """One element per byte from several, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (data[:, None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(-1)[:size]
