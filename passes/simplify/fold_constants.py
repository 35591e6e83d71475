"""Evaluates nodes whose inputs are all constant, within a budget of stored bytes.

Before::

    <int64[2] a = {2, 3}, int64[1] b = {4}>
    s = Concat <axis = 0> (a, b)
    y = Reshape (x, s)

After::

    <int64[3] s = {2, 3, 4}>
    y = Reshape (x, s)

Nodes that hang together by values, or by a constant that matters, form a region. A region is
folded as a whole and weighed as a whole: what has to be stored after it (the outputs that others
read) against what need not be stored any more (constants that nobody else reads, and the nodes).
Where that would grow, the nodes at its edge that make it grow are left in the graph, as an Expand
that writes out a megabyte, or a Cast of half precision weights.

Constant nodes of the main graph become initializers, which is a few bytes less.

Holds only if:

1. every node is deterministic (`ir.determinism`), holds no subgraph and no attribute reference,
   and every input is constant or computed by another node of the region;
2. the operator is neither a quantization operator, whose folding undoes the quantization, nor one
   of sequences, optionals or strings;
3. every element type is a plain number or bool of at least 8 bits, float8 excepted;
4. the stored bytes do not grow by more than ``context.fold_growth`` in the whole run; outputs of
   up to 1 KiB may also use what other regions saved;
5. onnxruntime evaluates the nodes, at most ``max_bytes`` at once;
6. a graph output keeps its name and its producer: a Constant node takes it over. Subgraphs,
   function bodies and models below IR version 4 get Constant nodes too, never initializers.

Exactness: exact. The values come from the kernels that would compute them at run time. Only for
float16, where onnxruntime may keep a chain of operators in float32, can the last bit depend on
where the chain is cut.

Source: operator specifications of ONNX, evaluated by onnxruntime with graph optimizations off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.determinism import is_deterministic
from onnxslim.ir.edit import remove
from onnxslim.ir.schema import ONNX_DOMAINS, is_op
from onnxslim.ir.traversal import nodes, subgraphs_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import becomes_node, discard_unused, replace_by_constant
from onnxslim.rewrite.stored_bytes import connected, edge_of, freed_constants, growth, growth_at
from onnxslim.runtime.constant_values import PLAIN, ConstantValues

NEVER = frozenset(
    {"Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ImageDecoder"}
    | {"Optional", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "StringConcat"}
    | {"StringNormalizer", "StringSplit", "TfIdfVectorizer"}
)
# Outputs up to this size may be paid for by what other regions save.
_SMALL_OUTPUT = 1024
# In a larger region everything at the edge that grows is left out at once.
_MANY_NODES = 500
# Small regions are evaluated together, up to so many nodes in one session.
_BATCH_NODES = 200
# A transposed weight from this size on is computed when it is read, not when it is folded.
_LATE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Folds regions of constant nodes; a change is one node less.

    Attributes:
        max_bytes: constants and results of one region that are held in memory at most, in bytes; a
            larger region stays as it is. A single Transpose is exempt: it is done on saving.
        max_output_bytes: a node with a larger result stays; None means no limit.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_output_bytes: int | None = None
    name: ClassVar[str] = "fold-constants"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        run = _Run(self, model, context)
        return PassResult(run.hoist_constants() + run.fold())


@dataclass
class _Region:
    """Nodes that are folded together, in topological order, with what that costs in bytes."""

    nodes: list[ir.Node]
    growth: int
    edge: list[ir.Value]


class _Run:
    """One run over one model: the candidates, their values, and the account of bytes."""

    def __init__(self, owner: FoldConstants, model: ir.Model, context: Context) -> None:
        self.owner = owner
        self.model = model
        self.context = context
        self.saved = 0
        self.functions = {
            node: function
            for function in model.functions.values()
            for node in function.graph.all_nodes()
        }
        self.candidates: dict[ir.Node, None] = {}
        self.values = ConstantValues(self._imports, owner.max_bytes)

    def _imports(self, node: ir.Node) -> Mapping[str, int]:
        function = self.functions.get(node)
        return self.model.graph.opset_imports if function is None else function.opset_imports

    def hoist_constants(self) -> int:
        """Constant nodes of the main graph become initializers of the same name."""
        changes = 0
        for node in list(self.model.graph):
            if not is_op(node, "Constant") or self._as_node(node.outputs[0]):
                continue
            tensor = constant_tensor(node.outputs[0])
            name = node.outputs[0].name or ""
            if tensor is None or not self.context.allow(self.owner, name, "Constant node"):
                continue
            replace_by_constant(self.model, node.outputs[0], tensor)
            remove(node)
            changes += 1
        return changes

    def _as_node(self, value: ir.Value) -> bool:
        return becomes_node(self.model, value)

    def fold(self) -> int:
        for node in nodes(self.model):
            if self._is_candidate(node):
                self.candidates[node] = None
        for node in list(self.candidates):
            if any(self.values.nbytes(value) is None for value in node.outputs):
                self._evaluate_or_drop(node)
            self._drop_large(node)
        regions = self._affordable(connected(list(self.candidates)))
        regions.sort(key=lambda region: region.growth)
        self._evaluate_ahead(regions)
        return sum(self._fold_region(region) for region in regions)

    # -- candidates

    def _is_candidate(self, node: ir.Node) -> bool:
        if node.domain not in ONNX_DOMAINS or node.op_type in NEVER or "Sequence" in node.op_type:
            return False  # (2)
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return False
        if subgraphs_of(node):
            return False
        if not all(self._is_known(value) for value in node.inputs if value is not None):
            return False
        if not all(_may_be_plain(value) for value in node.outputs):
            return False
        return is_deterministic(node)  # (1)

    def _is_known(self, value: ir.Value) -> bool:
        if value.producer() in self.candidates:
            return True
        tensor = constant_tensor(value)
        return tensor is not None and tensor.dtype in PLAIN  # (3)

    def _drop(self, node: ir.Node, reason: str) -> None:
        """Takes a node out of the candidates, and all that hang on it."""
        self.context.refuse(self.owner, _label(node), reason)
        stack = [node]
        while stack:
            dropped = stack.pop()
            if dropped in self.candidates:
                del self.candidates[dropped]
                stack += [user for output in dropped.outputs for user in output.consumers()]

    def _evaluate_or_drop(self, node: ir.Node) -> None:
        """Evaluates a candidate after the candidates above it, each by itself."""
        for above in self._unknown_above(node):
            if above not in self.candidates:
                return
            try:
                self.values.evaluate(above)
            except RuntimeRefusedError as error:
                self._drop(above, f"it cannot be evaluated: {error}")

    def _drop_large(self, node: ir.Node) -> None:
        limit = self.owner.max_output_bytes
        sizes = [self.values.nbytes(value) or 0 for value in node.outputs]
        if limit is not None and node in self.candidates and max(sizes) > limit:
            self._drop(node, f"its {max(sizes):,} bytes are above the limit of {limit:,}")

    def _unknown_above(self, node: ir.Node) -> list[ir.Node]:
        """Candidates that have to be evaluated for this one, it included, in order."""
        found, stack = {node: None}, [node]
        while stack:
            for value in stack.pop().inputs:
                producer = value.producer() if value is not None else None
                if value is None or producer is None or self.values.is_known(value):
                    continue
                if producer in self.candidates and producer not in found:
                    found[producer] = None
                    stack.append(producer)
        return [candidate for candidate in self.candidates if candidate in found]

    # -- the account

    def _affordable(self, groups: list[list[ir.Node]]) -> list[_Region]:
        """Regions out of groups, less the nodes that would make them grow too much (4)."""
        regions = []
        while groups:
            members = groups.pop()
            edge = edge_of(members)
            if not edge:
                continue  # dead code is not folded but removed, elsewhere
            region = _Region(members, growth(members, self._contents, self._as_node), edge)
            excess = self._excess(region)
            if not excess:
                regions.append(region)
                continue
            for node, bytes_more in excess:
                reason = f"kept because folding it would add {_readable(bytes_more)}"
                self._drop(node, reason)
            groups += connected([node for node in members if node in self.candidates])
        return regions

    def _contents(self, value: ir.Value) -> int:
        return self.values.nbytes(value) or 0

    def _excess(self, region: _Region) -> list[tuple[ir.Node, int]]:
        """Nodes to leave out of a region that grows too much, with the bytes each would add."""
        if region.growth <= max(self.context.fold_growth, 0):
            return []
        if all(self._contents(value) <= _SMALL_OUTPUT for value in region.edge):
            return []  # decided when all savings are known
        sizes: dict[ir.Node, int] = {}
        for value in region.edge:
            producer = value.producer()
            if producer is not None:
                sizes[producer] = sizes.get(producer, 0) + self._contents(value)
        large = {node: size for node, size in sizes.items() if size > _SMALL_OUTPUT}
        if len(region.nodes) > _MANY_NODES:
            return list(large.items()) or list(sizes.items())
        blame = {node: growth_at(node, region.nodes, size) for node, size in sizes.items()}
        worst = max(blame, key=lambda node: blame[node])
        return [(worst, blame[worst])]

    def _pay(self, region: _Region) -> bool:
        """Charges a region to the account; False when it cannot be afforded."""
        if region.growth <= 0:
            self.saved -= region.growth
            return True
        small = all(self._contents(value) <= _SMALL_OUTPUT for value in region.edge)
        if small and region.growth <= self.saved:
            self.saved -= region.growth
            return True
        if region.growth <= self.context.fold_growth:
            self.context.fold_growth -= region.growth
            return True
        return False

    # -- folding

    def _fold_region(self, region: _Region) -> int:
        late = _late_transpose(region)
        if late is None and not self._has_room(region):
            return 0
        if late is None and not self._evaluate_region(region):
            left = [node for node in region.nodes if node in self.candidates]
            return sum(self._fold_region(part) for part in self._affordable(connected(left)))
        site = _label(region.nodes[0])
        if not self._pay(region):
            reason = f"kept because folding it would add {_readable(region.growth)}"
            self.context.refuse(self.owner, site, reason)
            return 0
        if not self.context.allow(self.owner, site, f"{len(region.nodes)} nodes"):
            return 0
        freed = freed_constants(region.nodes)
        for value in region.edge:
            tensor = late or ir.tensor(self.values.content(value))
            replace_by_constant(self.model, value, tensor)
        for node in reversed(region.nodes):
            remove(node)
        for value in freed:
            discard_unused(value)
        return len(region.nodes)

    def _has_room(self, region: _Region) -> bool:
        """Whether all that the region reads and makes may be in memory at once (5)."""
        read = {value for node in region.nodes for value in node.inputs if value is not None}
        made = {value for node in region.nodes for value in node.outputs}
        total = sum(self._contents(value) for value in read | made)
        if total > self.owner.max_bytes:
            reason = f"kept because folding it would need {_readable(total)} of memory"
            self.context.refuse(self.owner, _label(region.nodes[0]), reason)
        return total <= self.owner.max_bytes

    def _evaluate_ahead(self, regions: list[_Region]) -> None:
        """Evaluates small regions of the main graph many at a time; sessions cost more than nodes.

        What is refused here is tried again, region by region, when its turn comes.
        """
        batch: list[ir.Node] = []
        wanted: list[ir.Value] = []
        for region in [*regions, None]:
            if region is not None and not self._is_small(region):
                continue
            if batch and (region is None or len(batch) + len(region.nodes) > _BATCH_NODES):
                with contextlib.suppress(RuntimeRefusedError):
                    self.values.evaluate_together(batch, wanted)
                batch, wanted = [], []
            if region is not None:
                batch += region.nodes
                wanted += region.edge

    def _is_small(self, region: _Region) -> bool:
        made = [value for node in region.nodes for value in (*node.inputs, *node.outputs)]
        return (
            len(region.nodes) <= _BATCH_NODES
            and all(node.graph is self.model.graph for node in region.nodes)
            and not any(is_op(node, "Div", "Mod") for node in region.nodes)
            and sum(self._contents(value) for value in made if value is not None) <= _SMALL_OUTPUT
        )

    def _evaluate_region(self, region: _Region) -> bool:
        """Evaluates what is stored; where that is refused, finds and drops the nodes it is for."""
        try:
            self.values.evaluate_together(region.nodes, region.edge)
        except RuntimeRefusedError:
            for node in region.nodes:
                if node in self.candidates:
                    self._evaluate_or_drop(node)
        return all(node in self.candidates for node in region.nodes)


def _label(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), node.op_type)


def _readable(count: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count // 1000 if count >= 10_000 else count / 1000  # type: ignore[assignment]
    return f"{count:.3g} GB"


def _may_be_plain(value: ir.Value) -> bool:
    """False when the inferred type already says that the value is no tensor of numbers (3)."""
    if value.type is None:
        return True
    return isinstance(value.type, ir.TensorType) and value.dtype in PLAIN


def _late_transpose(region: _Region) -> ir.TensorProtocol | None:
    """The result of transposing one large weight; it is computed when somebody reads it.

    A weight of a gigabyte so stays on disk, and the result never lives longer than its use.
    """
    node = region.nodes[0]
    if len(region.nodes) != 1 or node.op_type != "Transpose":
        return None
    source = constant_tensor(node.inputs[0])
    if source is None or source.nbytes < _LATE_BYTES:
        return None
    sizes = source.shape.numpy()
    perm = node.attributes.get_ints("perm") or list(reversed(range(len(sizes))))
    shape = ir.Shape([sizes[axis] for axis in perm])

    def compute() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(np.transpose(source.numpy(), perm)))

    return ir.LazyTensor(compute, dtype=source.dtype, shape=shape)
