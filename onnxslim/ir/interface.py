"""Changes of a model's interface that a user asks for: other shapes, another cut of the graph."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxslim.errors import UsageError
from onnxslim.ir import shapes
from onnxslim.ir.edit import Names
from onnxslim.ir.traversal import subgraphs_of

Dtypes = Mapping[str, ir.DataType | None]
"""Names of values in order, each with the element type it shall have; None keeps its own."""


def change_input_shapes(model: ir.Model, wanted: Mapping[str, Sequence[int | str]]) -> None:
    """Gives inputs other shapes, fixed dimensions included, and works out what follows from them.

    What was declared for inner values and outputs followed from the old shapes, so it is dropped,
    and inferred again.

    Args:
        model: changed in place.
        wanted: dimensions by input name; a string is a symbol.

    Raises:
        UsageError: no such input, or another number of dimensions.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    for name, dims in wanted.items():
        if name not in inputs:
            raise UsageError(f"no input is called {name!r}{_near(name, inputs)}")
        declared = inputs[name].shape
        if declared is not None and len(declared) != len(dims):
            raise UsageError(f"input {name!r} has {len(declared)} dimensions, {len(dims)} given")
        inputs[name].shape = ir.Shape(list(dims))
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    _infer_all(model)


def _infer_all(model: ir.Model) -> None:
    """Shape inference that also fills in the graph outputs."""
    outputs = list(model.graph.outputs)
    model.graph.outputs.clear()
    shapes.infer(model)
    model.graph.outputs.extend(outputs)


def extract(model: ir.Model, inputs: Dtypes, outputs: Dtypes) -> None:
    """Cuts the part of the main graph that leads from some values to others.

    Args:
        model: changed in place.
        inputs: values that become the graph inputs, in this order; empty keeps the inputs.
        outputs: values that become the graph outputs, in this order; empty keeps the outputs. A
            type that a value does not have by itself is reached by a Cast at the border.

    Raises:
        UsageError: no such value in the main graph, an unknown type, or outputs that need an input
            which is not among ``inputs``.
    """
    shapes.infer(model)
    values = _values(model.graph)
    for name in (*inputs, *outputs):
        if name not in values:
            raise UsageError(f"no value of the main graph is called {name!r}{_near(name, values)}")
    ends = [values[name] for name in outputs] or list(model.graph.outputs)
    if inputs:
        ends = _set_inputs(model.graph, [values[name] for name in inputs], ends)
        for value, dtype in zip(list(model.graph.inputs), inputs.values(), strict=False):
            _type_input(model, value, dtype)
    _set_outputs(model, ends, list(outputs.values()) or [None] * len(ends))
    _drop_unneeded(model.graph)
    _check_closed(model.graph)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {value.name or "": value for value in graph.inputs}
    for node in graph:
        found.update({value.name: value for value in node.outputs if value.name})
    return found


def _set_inputs(
    graph: ir.Graph, starts: Sequence[ir.Value], ends: Sequence[ir.Value]
) -> list[ir.Value]:
    """Makes ``starts`` the inputs; returns the ends, where a start may have become its input."""
    new: dict[ir.Value, ir.Value] = {}
    for value in starts:
        if value.is_graph_input():
            new[value] = value
            continue
        new[value] = ir.Value(name=value.name, type=value.type, shape=value.shape)
        ir.convenience.replace_all_uses_with(value, new[value], replace_graph_outputs=True)
        value.name = None
    defaults = [value for value in graph.inputs if value.is_initializer() and value not in new]
    graph.inputs.clear()
    graph.inputs.extend([*(new[value] for value in starts), *defaults])
    return [new.get(value, value) for value in ends]


def _type_input(model: ir.Model, value: ir.Value, dtype: ir.DataType | None) -> None:
    _check_typed(value, dtype)
    if dtype is None or dtype == value.dtype:
        return
    if value.dtype is None:
        value.dtype = dtype
        return
    cast = _cast(model, value, value.dtype)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    cast.replace_input_with(0, value)
    value.dtype = dtype
    first = next(iter(model.graph), None)
    if first is None:
        model.graph.append(cast)
    else:
        model.graph.insert_before(first, cast)


def _check_typed(value: ir.Value, dtype: ir.DataType | None) -> None:
    if value.type is None and dtype is None:
        raise UsageError(f"the type of {value.name!r} is unknown; give it, as in {value.name}:fp32")


def _cast(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": int(dtype)})
    cast.outputs[0].name = Names(model).fresh(f"{value.name}_{dtype.name.lower()}")
    cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
    return cast


def _set_outputs(
    model: ir.Model, ends: Sequence[ir.Value], dtypes: Sequence[ir.DataType | None]
) -> None:
    graph = model.graph
    graph.outputs.clear()
    for value, dtype in zip(ends, dtypes, strict=True):
        _check_typed(value, dtype)
        if value.dtype is None and dtype is not None:
            value.dtype = dtype
        if dtype is None or dtype == value.dtype:
            graph.outputs.append(value)
            continue
        cast = _cast(model, value, dtype)
        graph.append(cast)
        if not value.is_graph_input():
            # the name belongs to the border: whoever fetches the output asks for it
            cast.outputs[0].name, value.name = value.name, cast.outputs[0].name
        graph.outputs.append(cast.outputs[0])


def _drop_unneeded(graph: ir.Graph) -> None:
    """Removes every node that no output depends on, last ones first."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            _release(node)
            graph.remove(node, safe=True)


def _release(node: ir.Node) -> None:
    """The nodes of its subgraphs no longer count as users of outer values."""
    for graph in subgraphs_of(node):
        for inner in graph:
            _release(inner)
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)


def _check_closed(graph: ir.Graph) -> None:
    """Raises where a node reads a former input."""
    known = {*graph.inputs, *graph.initializers.values()}
    known.update(value for node in graph for value in node.outputs)
    for node in graph:
        for value in _read(node):
            if value is not None and value not in known and value.graph is None:
                raise UsageError(
                    f"the outputs still need {value.name!r}; name it among the inputs too"
                )
    for value in graph.outputs:
        if value not in known:
            raise UsageError(f"output {value.name!r} is a former input; name it among the inputs")


def _read(node: ir.Node) -> Iterable[ir.Value | None]:
    yield from node.inputs
    for graph in subgraphs_of(node):
        for inner in graph:
            yield from _read(inner)


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; there are {', '.join(names[:8])}{more}"
