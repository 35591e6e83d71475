"""Functions that other projects import from this path of the package-index project.

The name of the module is that project's; what it offers here is what was found in use elsewhere.
New code has `onnxslim.inspect`, `onnxslim.validate` and `onnxslim.save`, which say more.
"""

from onnxslim.compat.checking import (
    check_onnx,
    check_result,
    gen_onnxruntime_input_data,
    is_onnxruntime_available,
    onnxruntime_inference,
)
from onnxslim.compat.model_info import (
    ModelInfo,
    OperatorInfo,
    TensorInfo,
    dump_model_info_to_disk,
    format_bytes,
    get_ir_version,
    get_opset,
    init_logging,
    onnx_dtype_to_numpy,
    print_model_info_as_table,
    save,
    summarize_model,
)

__all__ = [
    "ModelInfo",
    "OperatorInfo",
    "TensorInfo",
    "check_onnx",
    "check_result",
    "dump_model_info_to_disk",
    "format_bytes",
    "gen_onnxruntime_input_data",
    "get_ir_version",
    "get_opset",
    "init_logging",
    "is_onnxruntime_available",
    "onnx_dtype_to_numpy",
    "onnxruntime_inference",
    "print_model_info_as_table",
    "save",
    "summarize_model",
]
