"""`calibrate`: from a model and data to statistics by tensor, one feed in memory at a time."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.checks import near_names
from onnxslim.calibration.collect import BUDGET, Collector
from onnxslim.calibration.image_options import ImageOptions
from onnxslim.calibration.store import Calibration
from onnxslim.calibration.streams import open_feeds
from onnxslim.calibration.watch import SampleRun
from onnxslim.errors import UsageError
from onnxslim.io import load, save, skeleton_proto, total_bytes
from onnxslim.ir import shapes
from onnxslim.ir.traversal import subgraphs_of
from onnxslim.runtime.specs import input_specs

Progress = Callable[[int, int], None]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)

# Larger models have their weights beside them.
_ONE_FILE = 2_000_000_000

# Part of every key: statistics of another form are not mixed.
_PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What is gathered, and from what.

    Attributes:
        model_digest: sha256 in hex of the model's bytes.
        names: the tensors, in the order of the graph.
        channels: tensors whose largest magnitude per channel is kept, with the axis.
    """

    model_digest: str
    names: tuple[str, ...]
    channels: tuple[tuple[str, int], ...] = ()

    @property
    def key(self) -> str:
        """sha256 in hex over all of it: equal keys, comparable statistics."""
        plan = [_PLAN_VERSION, self.model_digest, sorted(self.names), sorted(self.channels)]
        return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def make_plan(
    model: ir.Model,
    tensors: Sequence[str] | None = None,
    channels: Mapping[str, int] | None = None,
) -> Plan:
    """The plan for a model.

    Args:
        model: the model.
        tensors: names of floating-point values of the main graph; None takes all that are no
            constants.
        channels: axis by tensor name, for tensors whose largest magnitude per channel is wanted.

    Raises:
        UsageError: a name that is no floating-point value of the main graph.
    """
    known = _float_values(model, constants=tensors is not None)
    names = tuple(known) if tensors is None else tuple(dict.fromkeys(tensors))
    wanted = dict(channels or {})
    for name in (*names, *wanted):
        if name not in known:
            raise UsageError(
                f"{name!r} is no floating-point tensor of the main graph{near_names(name, known)}"
            )
    names = tuple(dict.fromkeys((*names, *wanted)))
    return Plan(model_digest(model), names, tuple(sorted(wanted.items())))


def calibrate(
    model: ir.Model | str | os.PathLike[str] | bytes,
    feeds: Any,
    *,
    tensors: Sequence[str] | None = None,
    channels: Mapping[str, int] | None = None,
    shard: tuple[int, int] | None = None,
    batch_size: int = 8,
    images: ImageOptions | None = None,
    budget: int = BUDGET,
    skip_bad: bool = False,
    strict: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Runs a model on calibration data and gathers statistics of its tensors.

    Parts of the data can be run anywhere and merged (`Calibration.merge`): with ``shard`` the
    merged result is the same bits for any number of shards.

    Args:
        model: a graph, a path, or a serialised model; it is not changed.
        feeds: what `open_feeds` takes: a path, ``module:function``, or any iterable of samples.
        tensors: names; None takes all floating-point tensors of the main graph.
        channels: axis by name, for tensors whose largest magnitude per channel is wanted.
        shard: ``(i, n)`` runs the feeds ``i - 1, i - 1 + n, ...`` only; i counts from 1.
        batch_size: samples at a time, where data and model leave that open.
        images: how images become inputs; None derives it from the model's input.
        budget: bytes of tensors that are held at one time.
        skip_bad: samples with NaN or infinity are left out, up to 5 percent (of all shards
            together: `merge_all` counts them).
        strict: NaN or infinity in inner tensors count as bad as well; else they are counted.
        threads: threads for one operator; 0 lets the runtime choose.
        progress: called with feeds done and feeds in all (as far as known) after each.

    Raises:
        DataError: no samples, bad ones, or such that do not fit the model; one line.
        UsageError: an unknown tensor, or a shard that does not exist.
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    graph = model if isinstance(model, ir.Model) else load(model)
    plan = make_plan(graph, tensors, channels)
    stream = open_feeds(feeds, input_specs(graph), batch_size=batch_size, images=images)
    if shard is not None:
        stream = stream.shard(*shard)
    collector = Collector(
        graph, plan.names, channels=dict(plan.channels), budget=budget, strict=strict,
        atomic=skip_bad, threads=threads,
    )  # fmt: skip
    run = SampleRun(collector, skip_bad)
    for done, (where, item) in enumerate(stream.raw(), start=1):
        run.add(item, where)
        if progress is not None:
            progress(done, max(stream.count or 0, done))
    notes = run.notes(stream, is_part=shard is not None)
    return Calibration(
        plan.key, collector.statistics(), collector.feeds, collector.samples, run.skipped, notes
    )


def model_digest(model: ir.Model) -> str:
    """sha256 in hex of the model as it would be saved in one file.

    What does not fit one file: of its graph, and of the names and numbers of its weights in order.
    """
    sink = _Hashing()
    if total_bytes(model) <= _ONE_FILE:
        save(model, cast("BinaryIO", sink))
        return sink.digest.hexdigest()
    sink.write(skeleton_proto(model, max_tensor_bytes=0).SerializeToString(deterministic=True))
    for name, value in model.graph.initializers.items():
        sink.write(name.encode())
        if value.const_value is not None:
            sink.write(np.ascontiguousarray(value.const_value.numpy()).reshape(-1).view(np.uint8))
    return sink.digest.hexdigest()


class _Hashing(io.RawIOBase):
    """A file that keeps nothing but the hash of what is written."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return memoryview(data).nbytes


def _float_values(model: ir.Model, *, constants: bool) -> dict[str, ir.Value]:
    """Floating-point values of the main graph, in order, with or without those that nodes make of
    constants alone."""
    work = load(model)
    shapes.infer(work)
    found = {value: None for value in work.graph.inputs if not value.is_initializer()}
    for node in work.graph:
        if constants or _changes(node, found):
            found.update(dict.fromkeys(node.outputs))
    return {value.name: value for value in found if value.name and value.dtype in _FLOATS}


def _changes(node: ir.Node, changing: Mapping[ir.Value, None]) -> bool:
    """True for nodes that read what changes; and for those of which that is not known."""
    return (
        any(value in changing for value in node.inputs if value is not None)
        or node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        or any(True for _ in subgraphs_of(node))
    )
