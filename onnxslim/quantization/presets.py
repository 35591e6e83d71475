"""Settings of static int8 per target, and which of them this processor wants."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxslim.errors import UsageError

_CPU_INFO = Path("/proc/cpuinfo")

_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@dataclass(frozen=True)
class QuantizePreset:
    """How numbers are stored.

    Attributes:
        name: what the command line calls it.
        activations: ``UINT8``, ``INT8``, ``UINT16`` or ``INT16``.
        weights: ``INT8`` or ``UINT8``.
        symmetric_activations: zero in the middle of the grid.
        per_channel: one scale per output channel of a weight, else one per weight.
        reduce_range: weights keep 7 bits. Without VNNI the kernels add pairs of products in 16
            bits; 8-bit weights overflow there, silently.
        whole_depthwise: weights of depthwise convolutions keep 8 bits all the same: their kernels
            add in 32 bits.
        constant_matmul_only: a MatMul of two activations stays in float.
        quantized_bias: biases become int32, else they stay in float.
        weight_pairs: weights stay in float before QuantizeLinear and DequantizeLinear.
        dedicated_pairs: every reader of a tensor has a pair of its own.
        float_outputs: operators whose outputs are not quantized for their own sake.
        smallest_range: tensors of a narrower range get this one.
        moves_first: operators that only move numbers are quantized whatever stands before them.
        needs: instruction sets, one of which the processor must have to show what the target does;
            empty for targets that any processor stands for.
        machines: processors that can show it, as `platform.machine` spells them; empty for all.
        device: True for targets that are no CPU: nothing here can show what they do.
    """

    name: str
    activations: ir.DataType = ir.DataType.UINT8
    weights: ir.DataType = ir.DataType.INT8
    symmetric_activations: bool = False
    per_channel: bool = True
    reduce_range: bool = False
    whole_depthwise: bool = False
    constant_matmul_only: bool = False
    quantized_bias: bool = True
    weight_pairs: bool = False
    dedicated_pairs: bool = False
    float_outputs: frozenset[str] = frozenset()
    smallest_range: float = 0.0
    moves_first: bool = False
    needs: frozenset[str] = frozenset()
    machines: frozenset[str] = frozenset()
    device: bool = False

    @property
    def signed_activations(self) -> bool:
        """True when activations are signed numbers."""
        return self.activations in (ir.DataType.INT8, ir.DataType.INT16)

    @property
    def needs_opset_21(self) -> bool:
        """True for 16 bits, which the standard operators take from opset 21."""
        return ir.DataType.INT8.bitwidth != self.activations.bitwidth


_X86 = frozenset({"x86_64", "amd64"})
_ARM = frozenset({"aarch64", "arm64"})

_PRESETS = (
    QuantizePreset("cpu-arm", activations=ir.DataType.INT8, machines=_ARM),
    QuantizePreset(
        "cpu-avx2",
        reduce_range=True,
        whole_depthwise=True,
        constant_matmul_only=True,
        needs=frozenset({"avx2"}),
        machines=_X86,
    ),
    QuantizePreset(
        "cpu-avx512",
        reduce_range=True,
        whole_depthwise=True,
        constant_matmul_only=True,
        needs=frozenset({"avx512f"}),
        machines=_X86,
    ),
    QuantizePreset("cpu-vnni", needs=_VNNI, machines=_X86),
    QuantizePreset("nnapi", device=True),
    QuantizePreset("openvino", reduce_range=True, device=True),
    # Weights of 7 bits cannot overflow anywhere, so this gives the same answers on every processor.
    QuantizePreset("portable", reduce_range=True, constant_matmul_only=True),
    QuantizePreset(
        "qnn",
        weights=ir.DataType.UINT8,
        per_channel=False,
        smallest_range=1e-4,
        moves_first=True,
        device=True,
    ),
    QuantizePreset(
        "qnn-a16",
        activations=ir.DataType.UINT16,
        weights=ir.DataType.UINT8,
        per_channel=False,
        smallest_range=1e-4,
        moves_first=True,
        device=True,
    ),
    QuantizePreset(
        "tensorrt",
        activations=ir.DataType.INT8,
        symmetric_activations=True,
        quantized_bias=False,
        weight_pairs=True,
        dedicated_pairs=True,
        float_outputs=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        device=True,
    ),
    # WebAssembly multiplies pairs into 16 bits as well.
    QuantizePreset("web", reduce_range=True, constant_matmul_only=True, device=True),
    QuantizePreset("xnnpack", activations=ir.DataType.INT8, device=True),
)
PRESETS = {preset.name: preset for preset in _PRESETS}


def find_preset(name: str) -> QuantizePreset:
    """The preset of that name; ``auto`` asks this processor.

    Raises:
        UsageError: no such preset.
    """
    if name == "auto":
        return PRESETS[preset_of(platform.machine(), processor_flags())]
    if name not in PRESETS:
        known = ["auto", *PRESETS]
        close = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
        raise UsageError(f"no quantization preset is called {name!r}; {hint}")
    return PRESETS[name]


def preset_of(machine: str, flags: frozenset[str]) -> str:
    """The name of the preset for a processor.

    Args:
        machine: as `platform.machine` spells it.
        flags: the instruction sets, as Linux spells them; empty when they cannot be asked for.
    """
    if machine.lower() in _ARM:
        return "cpu-arm"
    if flags & _VNNI:
        return "cpu-vnni"
    if "avx512f" in flags:
        return "cpu-avx512"
    return "cpu-avx2" if "avx2" in flags else "portable"


def unverifiable(
    preset: QuantizePreset, machine: str | None = None, flags: frozenset[str] | None = None
) -> str | None:
    """Why what this machine measures does not hold for the target of a preset, or None.

    Args:
        preset: the settings.
        machine: as `platform.machine` spells it; None asks this one.
        flags: the instruction sets; None asks this processor.
    """
    machine = (platform.machine() if machine is None else machine).lower()
    flags = processor_flags() if flags is None else flags
    if preset.device:
        return (
            f"preset {preset.name} is for a target that this machine is not: figures from here are "
            "no proof, check accuracy and speed there"
        )
    if (preset.machines and machine not in preset.machines) or (
        preset.needs and not preset.needs & flags
    ):
        wanted = " or ".join(sorted(preset.needs)) or " or ".join(sorted(preset.machines))
        return (
            f"preset {preset.name} cannot be verified here: this processor lacks {wanted}; check "
            "accuracy and speed on the target"
        )
    return None


def processor_flags(path: Path = _CPU_INFO) -> frozenset[str]:
    """The instruction sets of the first processor; empty where the system does not tell."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
