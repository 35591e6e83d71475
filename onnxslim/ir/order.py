"""Node order: every value is computed before it is read."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.errors import VerificationError
from onnxslim.ir.verify import verify


def verify_sorted(model: ir.Model) -> bool:
    """`verify`, after putting the nodes in order where they are not.

    The format demands topological order; onnxruntime reads files without it, and converters to
    float16 write such files.

    Returns:
        True when nodes had to be moved.

    Raises:
        VerificationError: as `verify`; the order is not what is wrong, or there is a cycle.
    """
    try:
        verify(model)
        return False
    except VerificationError as error:
        try:
            for graph in (model.graph, *(item.graph for item in model.functions.values())):
                graph.sort()
        except ValueError:
            raise error from None
        verify(model)
        return True
