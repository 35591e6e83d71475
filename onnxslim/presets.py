"""The named pipelines, each a list that can be read top to bottom.

Positions have reasons: facts first, then what deletes (less is left for the rest), then what folds
and fuses, each group until nothing moves; then the removal of channels (it needs the fused form to
see constant channels) together with all of the former, until nothing moves, since one uncovers work
for the other; and last what only looks at the final weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from onnxslim import passes
from onnxslim.errors import UsageError
from onnxslim.pipeline import Fixpoint, Pass, Pipeline, leaves

_CLEAN = (
    "infer-shapes",
    "eliminate-dead-nodes",
    "eliminate-identity",
    "fold-constants",
    "fold-shape-arithmetic",
    "rebuild-shapes",
    "inline-constant-if",
    "eliminate-noop",
    "eliminate-zero-bias",
    "eliminate-zero-state",
    "eliminate-expand-before-broadcast",
    "simplify-where",
    "split-from-slices",
    "fuse-shared-slices",
    "fuse-consecutive-casts",
    "fuse-consecutive-reshapes",
    "fuse-consecutive-squeezes",
    "split-before-transpose",
    "sink-transposes",
    "fuse-transpose-reduce",
    "eliminate-transpose-of-ones",
    "eliminate-transpose-before-shape",
    "fuse-consecutive-transposes",
    "eliminate-common-subexpressions",
    "eliminate-dead-nodes",
)

_FUSE = (
    "fuse-layer-normalization",
    "fuse-rms-normalization",
    "fuse-gelu",
    "fuse-hard-swish",
    "fuse-conv-batchnorm",
    "fuse-conv-affine",
    "fuse-batchnorm-affine",
    "fuse-matmul-add",
    "fuse-transpose-gemm",
    "run-onnxoptimizer",
)


# Whole heads in one operator: last, since the removal of channels sees into the parts only.
_LAST = ("fuse-attention", "deduplicate-initializers", "eliminate-common-subexpressions")

# Where the file will run, and what does not pay there: operators of opset 20 and later, for which
# these runtimes have no kernel of their own, or which they make better ones of the parts.
LATE: dict[str, frozenset[str]] = {
    "ort": frozenset(),
    "openvino": frozenset({"fuse-attention"}),
    "portable": frozenset({"fuse-attention", "fuse-gelu", "fuse-rms-normalization"}),
    "tensorrt": frozenset({"fuse-attention", "fuse-rms-normalization"}),
    "web": frozenset({"fuse-attention", "fuse-rms-normalization"}),
}


Settings = Mapping[str, Mapping[str, Any]]
"""Options of passes: pass name -> field -> value."""

# Where a preset wants another value than the pass has by itself.
_SETTINGS: Settings = {"eliminate-zeroed-channels": {"align": None}}


def _make(names: Sequence[str]) -> tuple[Pass, ...]:
    return tuple(passes.load(name)(**_SETTINGS.get(name, {})) for name in names)


def simplify() -> Pipeline:
    """Same graph, fewer nodes: clean until nothing moves, fuse, clean again, share weights."""
    return Pipeline(
        (
            Fixpoint(_make(_CLEAN)),
            Fixpoint(_make([*_FUSE, *_CLEAN])),
            *_make(_LAST),
            *_make(["eliminate-dead-nodes"]),
        )
    )


def default() -> Pipeline:
    """`simplify`, then zeroed channels, then what their removal uncovered. Nothing lossy."""
    return Pipeline(
        (
            Fixpoint(_make(_CLEAN)),
            Fixpoint(_make([*_FUSE, *_CLEAN])),
            Fixpoint(_make(["infer-shapes", "eliminate-zeroed-channels", *_FUSE, *_CLEAN])),
            *_make(_LAST),
            *_make(["eliminate-dead-nodes"]),
        )
    )


def prune() -> Pipeline:
    """Zeroed channels alone, after what hides them, and without the nodes they leave behind."""
    names = ("infer-shapes", "eliminate-identity", "eliminate-zeroed-channels")
    return Pipeline(_make([*names, "eliminate-dead-nodes"]))


PRESETS = {"default": default, "prune": prune, "simplify": simplify}


def build(
    preset: str = "default",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    settings: Settings | None = None,
    target: str = "ort",
) -> Pipeline:
    """The pipeline of a run.

    Args:
        preset: a name from `PRESETS`.
        only: pass names to run instead, once each in this order, after shape inference.
        skip: pass names to leave out.
        settings: options by pass name, for every such pass in the pipeline.
        target: where the model will run, a name from `LATE`; leaves out what does not pay there,
            unless it is named in ``only``.

    Raises:
        UsageError: an unknown preset, target or pass, or a skipped pass that the pipeline does not
            hold.
    """
    if preset not in PRESETS:
        raise UsageError(f"no preset is called {preset!r}{passes.nearest(preset, list(PRESETS))}")
    if target not in LATE:
        raise UsageError(f"no target is called {target!r}{passes.nearest(target, list(LATE))}")
    pipeline = Pipeline(_make(["infer-shapes", *only])) if only else PRESETS[preset]()
    held = sorted({inner.name for inner in leaves(pipeline)})
    for name in skip:
        if name not in held:
            raise UsageError(
                f"--skip-pass {name!r}: the pipeline has no such pass{passes.nearest(name, held)}"
            )
    left_out = frozenset(skip) | (frozenset() if only else LATE[target])
    return Pipeline(_configured(pipeline.passes, left_out, settings or {}))


def held(names: Sequence[str], preset: str, only: Sequence[str] = ()) -> list[str]:
    """Those of the passes that a pipeline of `build` has."""
    steps = {step.name for step in leaves(PRESETS[preset]())} if preset in PRESETS else set()
    return [name for name in names if name in (only or steps)]


def _configured(
    steps: Sequence[Pass], skip: frozenset[str], settings: Settings
) -> tuple[Pass, ...]:
    """The same passes without the skipped ones, and with the options."""
    found: list[Pass] = []
    for step in steps:
        if isinstance(step, Pipeline | Fixpoint):
            found.append(replace(step, passes=_configured(step.passes, skip, settings)))
        elif step.name not in skip:
            found.append(replace(cast(Any, step), **settings.get(step.name, {})))
    return tuple(found)
