"""Names that the other project gives to optimizations and patterns, and the passes they mean here.

A pass here may do more than the pattern does there: leaving it out leaves all of that out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnxslim import passes, presets
from onnxslim.errors import UsageError
from onnxslim.pipeline import leaves

# A name that ends in - stands for all passes whose names begin so.
OPTIMIZATIONS: Mapping[str, tuple[str, ...]] = {
    "constant_folding": ("fold-", "inline-constant-if"),
    "dead_node_elimination": ("eliminate-identity", "eliminate-noop"),
    "graph_fusion": ("fuse-", "run-onnxoptimizer", "sink-transposes", "split-before-transpose"),
    "subexpression_elimination": ("eliminate-common-subexpressions",),
    "weight_tying": ("deduplicate-initializers",),
}

# An empty tuple: no pass here makes that rewrite, so there is nothing to leave out.
FUSION_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "EliminationConcat": ("eliminate-noop",),
    "EliminationReshape": ("fuse-consecutive-reshapes",),
    "EliminationReshapeAs": ("fold-shape-arithmetic",),
    "EliminationSlice": ("run-onnxoptimizer",),
    "EliminationTranspose": ("fuse-consecutive-transposes",),
    "EliminationTransposeAsReshape": (),
    "EliminationTransposeViewTranspose": ("sink-transposes",),
    "EliminationUnsqueeze": ("fuse-consecutive-squeezes",),
    "FusionConcatReshape": ("fold-shape-arithmetic",),
    "FusionConvAdd": ("fuse-conv-affine",),
    "FusionConvBN": ("fuse-conv-batchnorm",),
    "FusionConvMul": ("fuse-conv-affine",),
    "FusionConvTransposeAdd": ("fuse-conv-affine",),
    "FusionConvTransposeBN": ("fuse-conv-batchnorm",),
    "FusionConvTransposeMul": ("fuse-conv-affine",),
    "FusionGemm": ("fuse-matmul-add",),
    "FusionGemmAdd": ("fuse-conv-affine",),
    "FusionGemmMul": ("fuse-conv-affine",),
    "FusionPadConv": ("run-onnxoptimizer",),
    "FusionReduce": (),
}


def passes_to_skip(
    preset: str,
    optimizations: Iterable[str] | None = None,
    patterns: Iterable[str] | None = None,
    no_shape_infer: bool = False,
) -> list[str]:
    """The passes of a preset that these names mean.

    Args:
        preset: a name from `presets.PRESETS`.
        optimizations: names from `OPTIMIZATIONS`.
        patterns: names from `FUSION_PATTERNS`.
        no_shape_infer: also leave shape inference out.

    Raises:
        UsageError: an unknown name.
    """
    wanted = [*_looked_up(optimizations, OPTIMIZATIONS, "skip_optimizations")]
    wanted += _looked_up(patterns, FUSION_PATTERNS, "skip_fusion_patterns")
    if no_shape_infer:
        wanted.append("infer-shapes")
    if not wanted:
        return []
    held = {step.name for step in leaves(presets.build(preset))}
    return sorted(name for name in held if any(_means(entry, name) for entry in wanted))


def _means(entry: str, name: str) -> bool:
    return name.startswith(entry) if entry.endswith("-") else name == entry


def _looked_up(
    names: Iterable[str] | None, table: Mapping[str, Sequence[str]], keyword: str
) -> list[str]:
    given = [names] if isinstance(names, str) else list(names or ())
    for name in given:
        if name not in table:
            raise UsageError(f"{keyword}: {name!r} is unknown{passes.nearest(name, list(table))}")
    return [entry for name in given for entry in table[name]]
