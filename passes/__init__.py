"""The registry: every pass by its command-line name. Order here means nothing; see presets."""

from __future__ import annotations

import importlib
from importlib import metadata

from onnxslim.errors import UsageError
from onnxslim.pipeline import Pass

# name -> (module below onnxslim.passes, class)
REGISTRY: dict[str, tuple[str, str]] = {
    "deduplicate-initializers": ("simplify.deduplicate_initializers", "DeduplicateInitializers"),
    "eliminate-common-subexpressions": (
        "simplify.eliminate_common_subexpressions",
        "EliminateCommonSubexpressions",
    ),
    "eliminate-dead-nodes": ("simplify.eliminate_dead_nodes", "EliminateDeadNodes"),
    "eliminate-expand-before-broadcast": (
        "simplify.eliminate_expand_before_broadcast",
        "EliminateExpandBeforeBroadcast",
    ),
    "eliminate-identity": ("simplify.eliminate_identity", "EliminateIdentity"),
    "eliminate-noop": ("simplify.eliminate_noop", "EliminateNoop"),
    "eliminate-transpose-before-shape": (
        "simplify.eliminate_transpose_before_shape",
        "EliminateTransposeBeforeShape",
    ),
    "eliminate-transpose-of-ones": (
        "simplify.eliminate_transpose_of_ones",
        "EliminateTransposeOfOnes",
    ),
    "eliminate-zero-bias": ("simplify.eliminate_zero_bias", "EliminateZeroBias"),
    "eliminate-zero-state": ("simplify.eliminate_zero_state", "EliminateZeroState"),
    "eliminate-zeroed-channels": ("prune.eliminate_zeroed_channels", "EliminateZeroedChannels"),
    "fill-with-expand": ("compress.fill_with_expand", "FillWithExpand"),
    "fold-constants": ("simplify.fold_constants", "FoldConstants"),
    "fold-shape-arithmetic": ("simplify.fold_shape_arithmetic", "FoldShapeArithmetic"),
    "fuse-attention": ("transformers.fuse_attention", "FuseAttention"),
    "fuse-batchnorm-affine": ("simplify.fuse_batchnorm_affine", "FuseBatchnormAffine"),
    "fuse-consecutive-casts": ("simplify.fuse_consecutive_casts", "FuseConsecutiveCasts"),
    "fuse-consecutive-reshapes": ("simplify.fuse_consecutive_reshapes", "FuseConsecutiveReshapes"),
    "fuse-consecutive-squeezes": ("simplify.fuse_consecutive_squeezes", "FuseConsecutiveSqueezes"),
    "fuse-consecutive-transposes": (
        "simplify.fuse_consecutive_transposes",
        "FuseConsecutiveTransposes",
    ),
    "fuse-conv-affine": ("simplify.fuse_conv_affine", "FuseConvAffine"),
    "fuse-conv-batchnorm": ("simplify.fuse_conv_batchnorm", "FuseConvBatchnorm"),
    "fuse-gelu": ("transformers.fuse_gelu", "FuseGelu"),
    "fuse-hard-swish": ("transformers.fuse_hard_swish", "FuseHardSwish"),
    "fuse-layer-normalization": (
        "transformers.fuse_layer_normalization",
        "FuseLayerNormalization",
    ),
    "fuse-matmul-add": ("simplify.fuse_matmul_add", "FuseMatmulAdd"),
    "fuse-rms-normalization": ("transformers.fuse_rms_normalization", "FuseRmsNormalization"),
    "fuse-shared-slices": ("simplify.fuse_shared_slices", "FuseSharedSlices"),
    "fuse-transpose-gemm": ("simplify.fuse_transpose_gemm", "FuseTransposeGemm"),
    "fuse-transpose-reduce": ("simplify.fuse_transpose_reduce", "FuseTransposeReduce"),
    "infer-shapes": ("simplify.infer_shapes", "InferShapes"),
    "inline-constant-if": ("simplify.inline_constant_if", "InlineConstantIf"),
    "rebuild-shapes": ("simplify.rebuild_shapes", "RebuildShapes"),
    "run-onnxoptimizer": ("simplify.run_onnxoptimizer", "RunOnnxoptimizer"),
    "share-transposed-weights": (
        "compress.share_transposed_weights",
        "ShareTransposedWeights",
    ),
    "simplify-where": ("simplify.simplify_where", "SimplifyWhere"),
    "sink-transposes": ("simplify.sink_transposes", "SinkTransposes"),
    "split-before-transpose": ("simplify.split_before_transpose", "SplitBeforeTranspose"),
    "split-from-slices": ("simplify.split_from_slices", "SplitFromSlices"),
    "store-weights-half": ("compress.store_weights_half", "StoreWeightsHalf"),
    "store-weights-int4": ("compress.store_weights_int4", "StoreWeightsInt4"),
    "store-weights-int8": ("compress.store_weights_int8", "StoreWeightsInt8"),
    "store-weights-narrow": ("compress.store_weights_narrow", "StoreWeightsNarrow"),
    "store-weights-palette": ("compress.store_weights_palette", "StoreWeightsPalette"),
    "use-matmul-nbits": ("compress.use_matmul_nbits", "UseMatmulNbits"),
}

ENTRY_POINT_GROUP = "onnxslim.passes"


def names() -> list[str]:
    """The names of all passes: the product's own, then those of installed packages."""
    return sorted(REGISTRY) + sorted(point.name for point in _entry_points())


def load(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UsageError: no such pass (with the nearest names), or a plugin that does not load.
    """
    if name in REGISTRY:
        module, attribute = REGISTRY[name]
        found = getattr(importlib.import_module(f"onnxslim.passes.{module}"), attribute)
        return _checked(found, name)
    for point in _entry_points():
        if point.name == name:
            try:
                return _checked(point.load(), name)
            except (ImportError, AttributeError) as error:
                raise UsageError(
                    f"pass {name!r} of {point.value} does not load: {error}"
                ) from error
    raise UsageError(f"no pass is called {name!r}{nearest(name, names())}")


def nearest(name: str, known: list[str]) -> str:
    """``; did you mean ...?`` with close names, or a pointer to the list of all of them."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"


def _entry_points() -> list[metadata.EntryPoint]:
    return list(metadata.entry_points(group=ENTRY_POINT_GROUP))


def _checked(found: object, name: str) -> type[Pass]:
    if isinstance(found, type) and issubclass(found, Pass):
        return found
    raise UsageError(f"pass {name!r} is not a subclass of onnxslim.pipeline.Pass")
