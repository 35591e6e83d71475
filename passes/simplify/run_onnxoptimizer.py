"""Runs those passes of onnxoptimizer that are right and that no pass here replaces.

Before::

    p = Pad (x, pads)
    y = Conv (p, w)

After::

    y = Conv <pads = [1, 1, 1, 1]> (x, w)

``fuse_pad_into_conv`` is this one. The others: ``fuse_consecutive_slices`` makes one Slice of two,
``fuse_consecutive_log_softmax`` a LogSoftmax of Log and Softmax, ``eliminate_nop_monotone_argmax``
drops a Softmax before an ArgMax, ``rewrite_where`` drops the Not of a condition and swaps the
branches, ``fuse_concat_into_reshape`` replaces a shape with one unknown dimension by a constant
with -1. onnxoptimizer decides; it is asked about two nodes at a time, and its answer is carried out
on the graph, which keeps names, metadata and weights.

Holds only if:

1. the second node is the only reader of the first one, whose result is no graph output; neither has
   attributes that are references;
2. what onnxoptimizer itself does not check, or not in every version, holds:

   - Pad: the mode is ``constant`` and the value 0, no ``axes`` (taken for pads of all dimensions
     otherwise), pads and value are inputs (the attribute ``value`` is ignored otherwise); Conv: no
     ``auto_pad``;
   - Slices: the axes, which are constant, are all different, negative ones counted from the rank;
   - Softmax and Log, Softmax and ArgMax: the axis is written down. For the ArgMax, float or double
     and opset 13: a Softmax over several axes may underflow to 0 in a whole row, and the coarse
     steps of 16 bits make equals of different numbers. (Exp, Log and Sqrt, which onnxoptimizer
     drops as well, may underflow or have no result, and stay.)
   - Concat and Reshape: ``allowzero`` is 0, all known dimensions but -1 are positive;

3. onnxoptimizer's answer is one node in place of the two, plus constants.

Exactness: rounding; LogSoftmax does not underflow where Log of Softmax does, and numbers that
Softmax rounds to one are still two for ArgMax.

Source: the passes of onnxoptimizer, by the names above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir.constants import constant_tensor, int_list, scalar
from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op, opset_of
from onnxslim.ir.shapes import rank, static_shape
from onnxslim.ir.traversal import nodes
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import add_constant, discard_unused

if TYPE_CHECKING:
    from onnxslim.runtime.onnxoptimizer_passes import Answer


@dataclass(frozen=True)
class RunOnnxoptimizer(Pass):
    """Asks onnxoptimizer about pairs of nodes; a change is one node less."""

    name: ClassVar[str] = "run-onnxoptimizer"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in nodes(model):
            # A node that took over what was before it may do so again.
            while (feeder := _candidate(model, node)) is not None:
                if not self._fuse(model, context, feeder, node):
                    break
                changes += 1
        return PassResult(changes)

    def _fuse(self, model: ir.Model, context: Context, feeder: ir.Node, node: ir.Node) -> bool:
        # Imported here: most models have no candidates.
        from onnxslim.runtime.onnxoptimizer_passes import ask

        rule = _RULES[node.op_type]
        site = node.outputs[0].name or ""
        try:
            answer = ask(rule.pass_name, [feeder, node], opset_of(node, model) or 0)
        except RuntimeRefusedError as error:
            context.refuse(self, site, str(error))
            return False
        if answer is None:
            return False
        kept = node.attributes.keys() <= answer.attributes.keys()
        if answer.op_type != rule.result or not kept:
            context.refuse(self, site, f"{rule.pass_name} of onnxoptimizer changed something else")
            return False
        if not context.allow(self, site, rule.pass_name):
            return False
        _rewrite(model, context, feeder, node, answer)
        return True


@dataclass(frozen=True)
class _Rule:
    """One pass of onnxoptimizer.

    Attributes:
        pass_name: its name there.
        slot: the input of the node through which it reads the feeder.
        feeders: the operators that the feeder may be.
        result: the operator that the node becomes.
        holds: condition 2, of (feeder, node, opset).
    """

    pass_name: str
    slot: int
    feeders: tuple[str, ...]
    result: str
    holds: Callable[[ir.Node, ir.Node, int], bool]


def _candidate(model: ir.Model, node: ir.Node) -> ir.Node | None:
    """The node before a node, when a pass of onnxoptimizer may make one of the two (1, 2)."""
    rule = _RULES.get(node.op_type)
    if rule is None or not is_op(node, node.op_type) or len(node.inputs) <= rule.slot:
        return None
    value = node.inputs[rule.slot]
    feeder = value.producer() if value is not None else None
    if value is None or feeder is None or not is_op(feeder, *rule.feeders):
        return None
    if feeder.graph is not node.graph or value.is_graph_output() or len(value.uses()) != 1:
        return None
    if len(feeder.outputs) != 1 or len(node.outputs) != 1 or _has_reference(feeder, node):
        return None
    opset = opset_of(node, model)
    return feeder if opset is not None and rule.holds(feeder, node, opset) else None


def _has_reference(*pair: ir.Node) -> bool:
    return any(attribute.is_ref() for node in pair for attribute in node.attributes.values())


def _pad_holds(pad: ir.Node, conv: ir.Node, opset: int) -> bool:
    pads = int_list(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if pads is None or len(pads) < 6 or len(pads) % 2 or any(pad.inputs[3:]):
        return False
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if value is not None and scalar(value) != 0:
        return False
    own = conv.attributes.get("pads")
    return (
        pad.attributes.get_string("mode", "constant") == "constant"
        and conv.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and (own is None or len(own.as_ints()) == len(pads) - 4)
    )


def _slices_hold(first: ir.Node, second: ir.Node, opset: int) -> bool:
    if len(first.inputs) != 5 or len(second.inputs) != 5:
        return False
    lists = [int_list(value) for value in (*first.inputs[1:], *second.inputs[1:])]
    axes = [*(lists[2] or ()), *(lists[6] or ())]
    if any(axis < 0 for axis in axes):
        dims = rank(first.inputs[0])
        if dims is None:
            return False
        axes = [axis % dims for axis in axes]
    return all(item is not None for item in lists) and len(set(axes)) == len(axes)


def _axis_is_written(softmax: ir.Node, log: ir.Node, opset: int) -> bool:
    return "axis" in softmax.attributes


def _argmax_holds(softmax: ir.Node, argmax: ir.Node, opset: int) -> bool:
    value = softmax.inputs[0]
    return (
        opset >= 13
        and "axis" in softmax.attributes
        and "axis" in argmax.attributes
        and value is not None
        and value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    )


def _always(feeder: ir.Node, node: ir.Node, opset: int) -> bool:
    return True


def _concat_holds(concat: ir.Node, reshape: ir.Node, opset: int) -> bool:
    if reshape.attributes.get_int("allowzero", 0) or "axis" not in concat.attributes:
        return False
    for value in concat.inputs:
        dims = int_list(value)
        if dims is None and (constant_tensor(value) is not None or static_shape(value) != (1,)):
            return False
        if any(size < -1 or size == 0 for size in dims or ()):
            return False
    return True


# By the operator of the second node.
_RULES = {
    "ArgMax": _Rule(
        "eliminate_nop_monotone_argmax", 0, ("Softmax", "LogSoftmax"), "ArgMax", _argmax_holds
    ),
    "Conv": _Rule("fuse_pad_into_conv", 0, ("Pad",), "Conv", _pad_holds),
    "Log": _Rule("fuse_consecutive_log_softmax", 0, ("Softmax",), "LogSoftmax", _axis_is_written),
    "Reshape": _Rule("fuse_concat_into_reshape", 1, ("Concat",), "Reshape", _concat_holds),
    "Slice": _Rule("fuse_consecutive_slices", 0, ("Slice",), "Slice", _slices_hold),
    "Where": _Rule("rewrite_where", 0, ("Not",), "Where", _always),
}


def _rewrite(
    model: ir.Model, context: Context, feeder: ir.Node, node: ir.Node, answer: Answer
) -> None:
    """Makes the node what the answer says, in its place, and removes the one before it."""
    from onnxslim.runtime.onnxoptimizer_passes import same_attribute

    former = [value for value in (*feeder.inputs, *node.inputs) if value is not None]
    inputs: list[ir.Value | None] = []
    for slot, item in enumerate(answer.inputs):
        if item is None or isinstance(item, ir.Value):
            inputs.append(item)
        else:
            name = context.fresh_name(f"{node.outputs[0].name}_input_{slot}")
            inputs.append(add_constant(model, node, ir.tensor(item), name))
    node.op_type = answer.op_type
    node.resize_inputs(len(inputs))
    for slot, value in enumerate(inputs):
        node.replace_input_with(slot, value)
    for key, attribute in answer.attributes.items():
        if key not in node.attributes or not same_attribute(node.attributes[key], attribute):
            node.attributes[key] = attribute
    remove(feeder)
    for value in dict.fromkeys(former):
        discard_unused(value)
