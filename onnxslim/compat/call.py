"""`slim`: the call that other projects make."""

from __future__ import annotations

import inspect as python_inspect
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxslim import api, io, model_files, passes
from onnxslim.compat import arguments, names
from onnxslim.errors import DemandMissedError, UsageError
from onnxslim.report.data import Step

if TYPE_CHECKING:
    import onnx

Target = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Changes:
    """What the drop-in keywords ask for beyond `api.optimize`; see `slim` for each."""

    model_check: bool = False
    model_check_inputs: Mapping[str, Any] | Iterable[str] | None = None
    input_shapes: arguments.Shapes | None = None
    inputs: Iterable[str] | str | None = None
    outputs: Iterable[str] | str | None = None
    no_shape_infer: bool = False
    skip_optimizations: Iterable[str] | None = None
    skip_fusion_patterns: Iterable[str] | None = None
    dtype: str | None = None

    @property
    def edits(self) -> bool:
        """True when the model has to be changed or looked into before the passes run."""
        return any((self.model_check_inputs, self.input_shapes, self.inputs, self.outputs))


def slim(
    model: Any,
    output_model: Target = None,
    *,
    model_check: bool = False,
    model_check_inputs: Mapping[str, Any] | Iterable[str] | None = None,
    input_shapes: arguments.Shapes | None = None,
    inputs: Iterable[str] | str | None = None,
    outputs: Iterable[str] | str | None = None,
    no_shape_infer: bool = False,
    skip_optimizations: Iterable[str] | None = None,
    skip_fusion_patterns: Iterable[str] | None = None,
    size_threshold: int | None = None,
    dtype: str | None = None,
    save_as_external_data: bool = False,
    inspect: bool = False,
    dump_to_disk: bool = False,
    verbose: bool = False,
    **options: Any,
) -> onnx.ModelProto | None:
    """Makes a model smaller and faster; a drop-in for `slim` of the project of the same name.

    Args:
        model: a path, bytes, a ``ModelProto`` or an ``ir.Model``, none of which is changed; or a
            list of them, which only prints how they compare.
        output_model: a path to write to.
        model_check: the outputs must have been compared with the original's and agree. Without it
            they are compared too, but a model that cannot be run is let through.
        model_check_inputs: inputs for the comparison, ``["x:1,3,224,224", "y:file.npy"]`` or a
            dict of shapes, arrays or paths.
        input_shapes: ``{"x": [1, 3, 224, 224]}`` or ``["x:1,3,224,224"]``; fixed dimensions are
            changed too.
        inputs: values that become the inputs of the model, ``["a", "b:fp16"]``; types are fp16,
            fp32, int32, int64 and bool.
        outputs: values that become its outputs, of the same form.
        no_shape_infer: leave shape inference out.
        skip_optimizations: of constant_folding, graph_fusion, dead_node_elimination,
            subexpression_elimination, weight_tying.
        skip_fusion_patterns: names as in `onnxslim.compat.names.FUSION_PATTERNS`.
        size_threshold: folded tensors of more bytes are left as operators.
        dtype: ``fp16`` or ``fp32``: every float tensor, inputs and outputs included. Lossy.
        save_as_external_data: weights in a data file beside ``output_model``.
        inspect: kept for callers that pass it; a list is compared with or without.
        dump_to_disk: with a list: also write ``NAME_model_info.csv`` to the working directory.
        verbose: log what is done.
        options: those of `onnxslim.optimize`, such as ``validate=False``.

    Returns:
        The model; None when it was written, or when a list was compared.

    Raises:
        UsageError: an unknown keyword, name or form.
        DemandMissedError: the outputs differ, or ``model_check`` could not be carried out; nothing
            is written.
    """
    _reject_unknown(options)
    if verbose:
        logging.getLogger("onnxslim").setLevel(logging.DEBUG)
    if isinstance(model, list | tuple):
        from onnxslim.compat.comparison import compare

        compare(model, dump_to_disk=dump_to_disk)
        return None
    if dump_to_disk:
        raise UsageError("dump_to_disk goes with a list of models to compare: slim([model], ...)")
    changes = Changes(
        model_check=model_check,
        model_check_inputs=model_check_inputs,
        input_shapes=input_shapes,
        inputs=inputs,
        outputs=outputs,
        no_shape_infer=no_shape_infer,
        skip_optimizations=skip_optimizations,
        skip_fusion_patterns=skip_fusion_patterns,
        dtype=dtype,
    )
    options = {"external_data": save_as_external_data, "size_threshold": size_threshold, **options}
    result = run(model, output_model, changes, **options)
    return None if output_model is not None else io.to_proto(result.model)


def run(source: Any, target: Any, changes: Changes, **options: Any) -> api.Optimized:
    """`api.optimize` with what the drop-in keywords ask for.

    Args:
        source: as for `api.optimize`.
        target: as for `api.optimize`.
        changes: what is asked for.
        options: those of `api.optimize`.
    """
    dtype = arguments.read_float(changes.dtype)
    preset = options.get("preset", "default")
    skipped = names.passes_to_skip(
        preset,
        changes.skip_optimizations,
        changes.skip_fusion_patterns,
        changes.no_shape_infer,
    )
    options["skip_passes"] = sorted({*options.get("skip_passes", ()), *skipped})
    given = _edited(source, changes, options) if changes.edits else source
    demanded = changes.model_check
    if demanded:
        options["validate"] = True
    later = demanded or dtype is not None
    result = api.optimize(given, None if later else target, **options)
    if given is not source:
        result.report.source = model_files.name_of(source)
    if demanded:
        _demand_check(result)
    if dtype is not None:
        _convert(given, result, dtype, options, demanded)
    if later and target is not None:
        io.check_target(target) if not hasattr(target, "write") else None
        result.report.files = model_files.write(
            result.model, target, external_data=options.get("external_data", False)
        )
        result.report.target = "stdout" if target == "-" else model_files.name_of(target)
    return result


def _edited(source: Any, changes: Changes, options: dict[str, Any]) -> ir.Model:
    """The model with the interface that is asked for; ``feeds`` among the options are set."""
    from onnxslim.ir import interface

    model = model_files.load_checked(source)
    inputs = arguments.read_values(changes.inputs, "inputs")
    outputs = arguments.read_values(changes.outputs, "outputs")
    if inputs or outputs:
        interface.extract(model, inputs, outputs)
    shapes = arguments.read_shapes(changes.input_shapes)
    if shapes:
        interface.change_input_shapes(model, shapes)
    if inputs or outputs or shapes:
        io.forget_declared(model)
    if changes.model_check_inputs:
        options["feeds"] = _feeds(model, changes.model_check_inputs, options.get("seed", 0))
    return model


def _feeds(model: ir.Model, given: Any, seed: int) -> list[Any]:
    """Made-up feeds of the shapes that are asked for, with the arrays that are given."""
    from onnxslim.calibration.feeds import generate_feeds

    shapes, arrays = arguments.read_check_inputs(given)
    known = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
    for name in (*shapes, *arrays):
        if name not in known:
            raise UsageError(f"no input is called {name!r}{passes.nearest(name, known)}")
    wanted = {**shapes, **{name: list(array.shape) for name, array in arrays.items()}}
    return [{**feed, **arrays} for feed in generate_feeds(model, seed=seed, shapes=wanted)]


def _demand_check(result: api.Optimized) -> None:
    status = result.report.validation.get("status")
    if status != "passed":
        reason = result.report.validation.get("reason") or "the outputs were not compared"
        raise DemandMissedError(f"model check: {status}: {reason}; nothing was written")


def _convert(
    source: Any, result: api.Optimized, dtype: ir.DataType, options: dict[str, Any], strict: bool
) -> None:
    """Changes the float type of the result, and says in the report what that costs."""
    from onnxslim.compat import half

    before = model_files.load_checked(result.model)
    note, warnings = half.convert(
        before,
        result.model,
        dtype,
        feeds=options.get("feeds"),
        seed=options.get("seed", 0),
        check=bool(options.get("validate", True)),
        strict=strict,
    )
    result.report.steps.append(Step(half.NAMES[dtype], model_files.measure(result.model), note))
    result.report.warnings.extend(warnings)


def _reject_unknown(options: Mapping[str, Any]) -> None:
    own = python_inspect.signature(slim).parameters
    more = python_inspect.signature(api.optimize).parameters
    known: Sequence[str] = sorted(
        {*own, *more} - {"model", "output_model", "source", "target", "options"}
    )
    for name in options:
        if name not in known:
            raise UsageError(f"slim: no keyword {name!r}{passes.nearest(name, list(known))}")
