"""Static int8 by ``onnxruntime.quantization`` itself, for comparison.

That engine knows tensors and nodes by names, to which it appends, so it gets a model in which every
name is unique and plain; the model's own names come back afterwards. Its running time grows with
the square of the number of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxslim.calibration.ranges import Range
from onnxslim.quantization.names import Naming
from onnxslim.quantization.plain_cleanup import spare_float_readers
from onnxslim.quantization.prepare import whole_tensor_weights
from onnxslim.quantization.presets import QuantizePreset
from onnxslim.quantization.selection import Selection
from onnxslim.runtime.static_engine import StaticCall, run_static


def write_plain(
    work: ir.Model,
    original: ir.Model,
    selection: Selection,
    preset: QuantizePreset,
    ranges: Mapping[str, Range],
    *,
    operators: bool = False,
    feed: Mapping[str, Any] | None = None,
) -> tuple[ir.Model, set[int], list[str]]:
    """Lets the engine of onnxruntime quantize.

    Args:
        work: from `prepare`; it is changed.
        original: where names and notes come from.
        selection: nodes of ``work``.
        preset: the settings; those for devices are not supported here.
        ranges: of all float tensors that the chosen nodes read or write.
        operators: operators that take integers instead of pairs of conversions.
        feed: one sample, for versions of onnxruntime that insist on measuring.

    Returns:
        The result, the ids of the nodes of ``work`` that are in int8, and warnings.

    Raises:
        InvalidModelError: the engine fails.
    """
    naming = Naming(work)
    naming.apply()
    call = StaticCall(
        op_types=sorted({node.op_type for node in selection.chosen}),
        excluded=[node.name or "" for node, _ in selection.refused],
        ranges={naming.new_name(name): found for name, found in ranges.items()},
        feed={naming.new_name(name): item for name, item in (feed or {}).items()},
        whole=whole_tensor_weights(selection.chosen),
        operators=operators,
        signed_activations=preset.signed_activations,
        symmetric_activations=preset.symmetric_activations,
        per_channel=preset.per_channel,
        reduce_range=preset.reduce_range,
    )
    result, warnings = run_static(work, call)
    after = {node.name: node for node in result.graph}
    active = {
        id(node)
        for node in selection.chosen
        if (found := after.get(node.name)) is None or _reads_int8(found)
    }
    spare_float_readers(result, selection)
    naming.restore(result, original)
    return result, active, warnings


def _reads_int8(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(item is not None and item.op_type == "DequantizeLinear" for item in producers)
