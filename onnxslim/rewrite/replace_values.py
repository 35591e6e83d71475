"""Changes many inputs of a node at once, in time linear in their number."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxslim.ir import edit

# Replacing one input copies the list of all; for a few that is cheap.
_FEW_INPUTS = 32


def replace_values(replacements: Mapping[ir.Value, ir.Value]) -> None:
    """Makes every node that reads a key read the value instead.

    Graph outputs are left alone, so no key may be one. Facts that only a key has (type, shape) go
    to the value that takes over. No value may itself be a key.
    """
    readers: dict[ir.Node, None] = {}
    for old, new in replacements.items():
        readers.update(dict.fromkeys(old.consumers()))
        if new.type is None:
            new.type = old.type
        if new.shape is None and not new.is_graph_input():
            new.shape = old.shape
    for node in readers:
        _replace_inputs(node, replacements)


def _replace_inputs(node: ir.Node, replacements: Mapping[ir.Value, ir.Value]) -> None:
    changed = [
        (index, value, replacements[value])
        for index, value in enumerate(node.inputs)
        if value is not None and value in replacements
    ]
    if len(node.inputs) <= _FEW_INPUTS or node.device_configurations:
        for index, _, new in changed:
            node.replace_input_with(index, new)
        return
    # The same steps as `Node.replace_input_with`, but with one copy of the list for all inputs.
    inputs = list(node.inputs)
    for index, old, new in changed:
        inputs[index] = new
        old._remove_usage(node, index)
        new._add_usage(node, index)
    node._inputs = tuple(inputs)


class Bypasses:
    """Bypasses nodes in time linear in their number, also where one node reads thousands of them.

    Readers with many inputs are changed by `finish`, all at once. Until then they still read the
    old values, so what a node reads has to be asked of `resolve`.
    """

    def __init__(self) -> None:
        self._later: dict[ir.Value, ir.Value] = {}
        self._gone: list[ir.Node] = []

    def resolve(self, value: ir.Value) -> ir.Value:
        """The value that will be read in the place of this one."""
        while value in self._later:
            value = self._later[value]
        return value

    def bypass(self, node: ir.Node, replacement: ir.Value) -> None:
        """`edit.bypass`, perhaps put off; ``replacement`` comes from `resolve`."""
        old = node.outputs[0]
        wide = any(len(reader.inputs) > _FEW_INPUTS for reader in old.consumers())
        if wide and not old.is_graph_output():
            self._later[old] = replacement
            self._gone.append(node)
        else:
            edit.bypass(node, replacement)

    def finish(self) -> None:
        """Does what was put off."""
        replace_values({old: self.resolve(old) for old in self._later})
        for node in self._gone:
            edit.remove(node)


def release_inputs(node: ir.Node) -> None:
    """Leaves a node that is about to go without inputs, so that it is no reader any more."""
    if len(node.inputs) > _FEW_INPUTS and not node.device_configurations:
        for index, value in enumerate(node.inputs):
            if value is not None:
                value._remove_usage(node, index)
        node._inputs = ()
    else:
        node.resize_inputs(0)
