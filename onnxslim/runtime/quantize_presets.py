"""Settings of static int8 per processor, and which of them this processor wants."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import UsageError

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class QuantizePreset:
    """How numbers are stored.

    Attributes:
        name: what the command line calls it.
        signed_activations: int8 activations (Arm kernels), else uint8.
        reduce_range: weights keep 7 bits. Without VNNI the kernels add pairs of products in 16
            bits; 8-bit weights overflow there, silently.
        constant_matmul_only: a MatMul of two activations stays in float.
    """

    name: str
    signed_activations: bool = False
    reduce_range: bool = False
    constant_matmul_only: bool = False


_PRESETS = (
    QuantizePreset("cpu-arm", signed_activations=True),
    QuantizePreset("cpu-avx2", reduce_range=True, constant_matmul_only=True),
    QuantizePreset("cpu-vnni"),
    # Weights of 7 bits cannot overflow anywhere, so this gives the same answers on every processor.
    QuantizePreset("portable", reduce_range=True, constant_matmul_only=True),
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
    if machine.lower() in ("aarch64", "arm64"):
        return "cpu-arm"
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "cpu-vnni"
    return "cpu-avx2" if "avx2" in flags else "portable"


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
