"""Plain unique names while the engine works, the model's own names afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from onnxslim.io import is_opaque_initializer
from onnxslim.io.extras import META_KEY, ModelExtras
from onnxslim.ir.traversal import graphs


class Naming:
    """Renames the values and nodes of a main graph, and back.

    The engine makes names by appending to names (``w_quantized``, ``b1``), which may exist already,
    and it knows nodes by their names, which may be empty or equal. New names look like ``t12_``:
    nothing in the model starts that way, and no ending makes one of them another.

    Args:
        model: in memory; `apply` changes it.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken = set(_value_names(model))
        prefix = "t"
        while any(name.startswith(prefix) for name in self._taken):
            prefix += "t"
        values = [value for value in _values(model.graph) if not is_opaque_initializer(value)]
        self._new = {value.name or "": f"{prefix}{i}_" for i, value in enumerate(values)}
        self._old = {new: old for old, new in self._new.items()}
        self._node_names = {f"n{i}_": node.name for i, node in enumerate(model.graph)}
        self._pattern = re.compile(rf"({prefix}\d+_)(.*)", re.DOTALL)

    def new_name(self, name: str) -> str:
        """The engine's name of a value."""
        return self._new[name]

    def apply(self) -> None:
        """Gives the values and nodes of the main graph their plain names."""
        for value in list(_values(self._model.graph)):
            if not is_opaque_initializer(value):
                value.name = self._new[value.name or ""]
        for name, node in zip(self._node_names, self._model.graph, strict=True):
            node.name = name

    def restore(self, result: ir.Model, original: ir.Model) -> None:
        """Gives ``result``, which the engine made, the names and notes of ``original``.

        What the engine added is called after the value that it belongs to.
        """
        result.graph.sort()  # the engine's order forgets what subgraphs read
        values = list(_values(result.graph))
        for value in values:
            if value.name in self._old:
                value.name = self._old[value.name]
        for value in values:
            value.name = self._fresh(value.name or "", self._taken)
        node_names = set(self._node_names.values())
        for node in result.graph:
            if node.name in self._node_names:
                node.name = self._node_names[node.name]
            else:
                node.name = self._fresh(node.name or "", node_names)
        restore(result, original, {})

    def _fresh(self, name: str, taken: set[str | None] | set[str]) -> str:
        match = self._pattern.fullmatch(name)
        if match is None:
            return name
        base = f"{self._old[match[1]]}{match[2]}"
        free, number = base, 0
        while free in taken:
            number += 1
            free = f"{base}_{number}"
        taken.add(free)
        return free


def restore(result: ir.Model, original: ir.Model, node_names: Mapping[str, str]) -> None:
    """Gives ``result`` the notes, declared types and node names of ``original``.

    Args:
        result: its tensors are called as in the original.
        original: the float model.
        node_names: names of nodes as they were, by the names they have now.
    """
    for node in result.graph:
        if node.name and node.name in node_names:
            node.name = node_names[node.name]
    _restore_values(result, original)
    _restore_model(result, original)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The named values of one graph, each once: inputs, initializers, node outputs."""
    yield from graph.inputs
    yield from [value for value in graph.initializers.values() if not value.is_graph_input()]
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _value_names(model: ir.Model) -> Iterator[str]:
    for graph in graphs(model):
        yield from (value.name or "" for value in _values(graph))


def _restore_values(result: ir.Model, original: ir.Model) -> None:
    """Types and notes as they were; what was declared for no inner value is not written for it."""
    known = {v.name: v for v in _values(original.graph) if not v.is_initializer()}
    for value in _values(result.graph):
        if value.is_initializer():
            continue
        before = known.get(value.name)
        if before is not None and before.dtype == ir.DataType.FLOAT16 and not _is_end(value):
            before = None  # computed in float32 now
        value.type = before.type if before is not None else None
        shape = before.shape if before is not None else None
        value.shape = shape.copy() if shape is not None else None
        if before is not None:
            value.doc_string = before.doc_string
            value.metadata_props.clear()
            value.metadata_props.update(before.metadata_props)
            value.meta.update(before.meta)


def _is_end(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_graph_output()


def _restore_model(result: ir.Model, original: ir.Model) -> None:
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(result, name, getattr(original, name))
    result.graph.name = original.graph.name
    result.graph.doc_string = original.graph.doc_string
    for target, source in ((result, original), (result.graph, original.graph)):
        target.metadata_props.clear()
        target.metadata_props.update(source.metadata_props)
    used = {node.domain for node in result.graph}
    for domain in set(result.opset_imports) - set(original.opset_imports) - used:
        del result.opset_imports[domain]
    extras = original.graph.meta.get(META_KEY)
    if isinstance(extras, ModelExtras):  # annotations describe float tensors that are gone
        result.graph.meta[META_KEY] = replace(extras, graph=None)
