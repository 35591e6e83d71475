"""No-ops of operators that move elements or change the shape."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxslim.ir.constants import array, int_list
from onnxslim.rewrite.noops.rules import Facts, Rule, dim, rank, same_static_shape, static_shape

# To slice to the end of an axis of unknown size, the largest int32 or int64 is written.
_TO_THE_END = 2**31 - 1


def _or_static(rule: Rule) -> Rule:
    """A rule for operators that keep the order of elements: equal static shapes suffice."""

    def checked(facts: Facts) -> ir.Value | None:
        kept = facts.input(0)
        return kept if same_static_shape(kept, facts.node.outputs[0]) else rule(facts)

    return checked


def _reshape(facts: Facts) -> ir.Value | None:
    """Every entry copies its axis or repeats its size; one -1 then has to be its own axis."""
    kept, target = facts.input(0), int_list(facts.input(1))
    if kept is None or target is None or rank(kept) != len(target):
        return None
    copies = facts.integer("allowzero", 0) == 0
    open_axes = [
        axis
        for axis, size in enumerate(target)
        if not (copies and size == 0) and dim(kept, axis) != size
    ]
    if not open_axes:
        return kept
    return kept if len(open_axes) == 1 and target[open_axes[0]] == -1 else None


def _flatten(facts: Facts) -> ir.Value | None:
    """A matrix between its two axes."""
    kept = facts.input(0)
    return kept if rank(kept) == 2 and facts.integer("axis", 1) in (1, -1) else None


def _expand(facts: Facts) -> ir.Value | None:
    kept, target = facts.input(0), int_list(facts.input(1))
    width = rank(kept)
    if kept is None or target is None or width is None or len(target) > width:
        return None
    fits = all(
        size == 1 or size == dim(kept, axis - len(target)) for axis, size in enumerate(target)
    )
    return kept if fits else None


def _squeeze(facts: Facts) -> ir.Value | None:
    """Nothing named and nothing there to squeeze."""
    shape = static_shape(facts.input(0))
    named = facts.input(1) is not None or "axes" in facts.node.attributes
    return None if named or shape is None or 1 in shape else facts.input(0)


def _never(_: Facts) -> ir.Value | None:
    return None


def _pad(facts: Facts) -> ir.Value | None:
    if facts.opset < 11:
        amounts = facts.integers("pads" if facts.opset >= 2 else "paddings")
    else:
        amounts = int_list(facts.input(1))
    return facts.input(0) if amounts is not None and not any(amounts) else None


def _slice(facts: Facts) -> ir.Value | None:
    """From the first to the last element of every axis, step by step."""
    kept = facts.input(0)
    bounds = _slice_attributes(facts) if facts.opset < 10 else _slice_inputs(facts)
    if kept is None or bounds is None:
        return None
    starts, ends, axes = bounds
    if len(starts) != len(ends) or len(axes) != len(starts):
        return None
    triples = zip(starts, ends, axes, strict=True)
    whole = all(_whole_axis(kept, axis, start, end) for start, end, axis in triples)
    return kept if whole else None


Bounds = tuple[list[int], list[int], list[int]]


def _slice_attributes(facts: Facts) -> Bounds | None:
    starts, ends = facts.integers("starts"), facts.integers("ends")
    if starts is None or ends is None:
        return None
    axes = facts.integers("axes")
    return starts, ends, list(range(len(starts))) if axes is None else axes


def _slice_inputs(facts: Facts) -> Bounds | None:
    starts, ends = int_list(facts.input(1)), int_list(facts.input(2))
    if starts is None or ends is None:
        return None
    axes: list[int] | None = list(range(len(starts)))
    if facts.input(3) is not None:
        axes = int_list(facts.input(3))
    if axes is None:
        return None
    if facts.input(4) is not None:
        steps = int_list(facts.input(4))
        if steps is None or any(step != 1 for step in steps):
            return None
    return starts, ends, axes


def _whole_axis(kept: ir.Value, axis: int, start: int, end: int) -> bool:
    size = dim(kept, axis)
    from_first = start == 0 or (isinstance(size, int) and start <= -size)
    to_last = end >= _TO_THE_END if not isinstance(size, int) else end >= size
    return from_first and to_last


def _split(facts: Facts) -> ir.Value | None:
    return facts.input(0) if len(facts.node.outputs) == 1 else None


def _tile(facts: Facts) -> ir.Value | None:
    repeats = int_list(facts.input(1))
    if facts.opset < 6 or repeats is None:
        return None
    return facts.input(0) if all(count == 1 for count in repeats) else None


def _transpose(facts: Facts) -> ir.Value | None:
    """Every axis stays, or has size 1 as has the one that takes its place."""
    kept, order = facts.input(0), facts.integers("perm")
    width = rank(kept)
    if order is None:
        if width is None:
            return None
        order = list(reversed(range(width)))
    moved = [axis for axis, source in enumerate(order) if axis != source]
    return kept if all(dim(kept, axis) == 1 for axis in moved) else None


def _resize(facts: Facts) -> ir.Value | None:
    """All scales 1, or all sizes as they are, and no crop."""
    kept = facts.input(0)
    if kept is None or facts.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    if facts.opset < 11:
        return kept if _all_ones(facts.input(1)) else None
    if facts.input(2) is not None and _all_ones(facts.input(2)):
        return kept
    if facts.input(3) is None or facts.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    sizes = int_list(facts.input(3))
    axes = facts.integers("axes")
    if sizes is None:
        return None
    axes = list(range(len(sizes))) if axes is None else axes
    same = len(axes) == len(sizes) and all(
        dim(kept, axis) == size for axis, size in zip(axes, sizes, strict=True)
    )
    return kept if same else None


def _upsample(facts: Facts) -> ir.Value | None:
    if facts.opset >= 9:
        return facts.input(0) if _all_ones(facts.input(1)) else None
    found = facts.node.attributes.get("scales")
    ones = found is not None and all(scale == 1 for scale in found.as_floats())
    return facts.input(0) if ones else None


def _all_ones(value: ir.Value | None) -> bool:
    content = array(value)
    return content is not None and content.size > 0 and bool((content == 1).all())


def _blocks(facts: Facts) -> ir.Value | None:
    """DepthToSpace or SpaceToDepth with blocks of one element."""
    return facts.input(0) if facts.integer("blocksize", 0) == 1 else None


def filled_inputs(node: ir.Node) -> list[ir.Value] | None:
    """The inputs of a Concat that are not known to be empty along its axis.

    Returns:
        At least one input, or None when none of them may be left out.
    """
    inputs = [value for value in node.inputs if value is not None]
    if len(inputs) != len(node.inputs) or not inputs:
        return None
    if len(inputs) == 1:
        return inputs
    found = node.attributes.get("axis")
    if found is None or found.is_ref():
        return None
    filled = [value for value in inputs if dim(value, found.as_int()) != 0] or inputs[:1]
    return filled if len(filled) < len(inputs) else None


RULES: dict[str, Callable[[Facts], ir.Value | None]] = {
    "DepthToSpace": _blocks,
    "Expand": _or_static(_expand),
    "Flatten": _or_static(_flatten),
    "Pad": _pad,
    "Reshape": _or_static(_reshape),
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _blocks,
    "Split": _split,
    "Squeeze": _or_static(_squeeze),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _or_static(_never),
    "Upsample": _upsample,
}
