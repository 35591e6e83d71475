"""Says whether readers may move from one value to another, where names decide.

Inside the IR a subgraph reads an outer value by reference; in the file it reads it by name. Where a
graph between defines the same name once more, the reader in the file would get that one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property

import onnx_ir as ir

from onnxslim.ir import edit
from onnxslim.ir.traversal import graphs

# Where the IR keeps the names of the tensors of a quantization annotation.
ANNOTATION = "quant_parameter_tensor_names"
# Remembers in the model's own notes that no value of it carries an annotation.
_PLAIN = "onnxslim.without_annotations"


class Scopes:
    """Answers for one model; the names are collected when the first question needs them."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def can_replace(self, old: ir.Value, new: ir.Value) -> bool:
        """True when `edit.replace_value` (old, new) keeps the meaning of every reader.

        Beside `edit.can_replace`: the name under which readers in subgraphs find ``new`` is defined
        nowhere else, no quantization annotation hangs on ``old``, and nothing outside the graph
        needs a name that goes.
        """
        if old.meta.get(ANNOTATION) or not edit.can_replace(old, new):
            return False
        gone = new.name if old.is_graph_output() else old.name
        if gone in self.outside:
            return False
        readers = list(old.consumers())
        if old.is_graph_output():  # the readers of ``new`` get to know it by another name
            readers.extend(new.consumers())
        name = old.name if old.is_graph_output() else new.name
        home = home_of(new)
        crossing = any(node.graph is not home for node in readers)
        return not crossing or name not in self._ambiguous_names

    @cached_property
    def outside(self) -> OutsideNames:
        """The names that are used without being the input of a node."""
        return OutsideNames(self._model)

    @cached_property
    def _ambiguous_names(self) -> frozenset[str]:
        counts: Counter[str] = Counter()
        for graph in graphs(self._model):
            names = {value.name or "" for value in graph.inputs} | set(graph.initializers)
            names.update(value.name or "" for node in graph for value in node.outputs)
            counts.update(names)
        return frozenset(name for name, count in counts.items() if count > 1)


def home_of(value: ir.Value) -> ir.Graph | None:
    """The graph that defines a value: by a node, as an input or as an initializer."""
    producer = value.producer()
    owner = producer.graph if producer is not None else value.graph
    return owner if isinstance(owner, ir.Graph) else None


class OutsideNames:
    """Names through which a model uses values without being the input of a node.

    These are the tensors that quantization annotations and training information name, and outer
    values that a subgraph returns as they are, which only their name shows.
    """

    def __init__(self, model: ir.Model) -> None:
        self._names = frozenset(_named(model))
        self._carried = b"\0".join(_carried_bytes(model))

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or not name:
            return False
        return name in self._names or (bool(self._carried) and name.encode() in self._carried)


def _named(model: ir.Model) -> Iterator[str]:
    for graph in graphs(model):
        for value in graph.outputs:
            if value.producer() is None and value.name:
                yield value.name
    # Annotations come with the file and are never added, so a model without them needs one look.
    if model.meta.get(_PLAIN, False):
        return
    annotated = False
    for value in _values(model):
        names = value.meta.get(ANNOTATION)
        if names:
            annotated = True
            yield from names.values()
    model.meta[_PLAIN] = not annotated


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs(model):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _carried_bytes(model: ir.Model) -> Iterator[bytes]:
    """Messages that are carried from load to save as bytes; a name inside them counts as used."""
    for graph in graphs(model):
        for extras in graph.meta.values():
            yield from getattr(extras, "training_info", ())
            for each in (extras, getattr(extras, "graph", None)):
                yield from getattr(each, "annotations", ())
