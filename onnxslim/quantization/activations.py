"""Inner tensors of a model on a few feeds, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxslim.io import load
from onnxslim.runtime.evaluate import evaluate
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import Array, Feed


class Activations:
    """A model that is open with inner tensors as outputs.

    Args:
        model: never changed.
        names: values of its main graph.
        optimize: as the runtime would deploy the model; False for the graph as it is.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
    """

    def __init__(self, model: ir.Model, names: Sequence[str], *, optimize: bool = False) -> None:
        copy = load(model)
        graph = copy.graph
        values = {value.name: value for node in graph for value in node.outputs}
        present = {value.name for value in graph.outputs}
        for name in dict.fromkeys(names):
            if name in values and name not in present:
                graph.outputs.append(values[name])
        self._inputs = {value.name for value in graph.inputs}
        self._session = open_session(copy, optimize=optimize)

    def each(self, name: str, feeds: Sequence[Feed]) -> Iterator[Array]:
        """The tensor on each feed; only what it depends on is computed.

        Raises:
            RuntimeRefusedError: the model does not run on a feed.
        """
        for feed in feeds:
            if name in self._inputs:
                yield feed[name]
            else:
                yield self._session.run(feed, [name])[0]


def product(node: ir.Node, source: Array, weight: Array, opsets: Mapping[str, int]) -> Array:
    """What a Conv, ConvTranspose, Gemm or MatMul makes of other inputs, without its bias.

    Args:
        node: it is not changed.
        source: instead of its first input.
        weight: instead of its second.
        opsets: imports of its graph.

    Raises:
        RuntimeRefusedError: onnxruntime does not compute it.
    """
    attributes = [item for item in node.attributes.values() if item.name != "beta"]
    inputs = [ir.Value(name="source"), ir.Value(name="weight")]
    bare = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=1)
    bare.outputs[0].name = "product"
    result = evaluate(bare, [source, weight], opsets)[0]
    assert result is not None  # its only output is wanted
    return result
