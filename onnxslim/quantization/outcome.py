"""What a quantization did, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxslim.quantization.gap import Gap
from onnxslim.quantization.gate import Decision
from onnxslim.quantization.metric import Score
from onnxslim.quantization.ranking import Region

_INT8 = (
    "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul",
)  # fmt: skip
_PRODUCTS = (
    "Attention", "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "LSTM",
    "GRU", "MatMul", "NhwcFusedConv", "RNN", "TransposeMatMul",
)  # fmt: skip
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass
class Outcome:
    """A finished quantization.

    Attributes:
        decision: the result and why it is that.
        preset: the settings' name.
        baseline: score of the original; None for made-up data.
        judged_by: what the scores are of, in words.
        limit: points that might be lost; None for made-up data.
        gap: between the arithmetic that the model describes and its kernels here, if measured.
        kernels: nodes by operator after onnxruntime has opened the result.
        ranking: regions that int8 hurts most first.
        steps: what was tried, one line each.
        warnings: what the user should know, one line each.
        engine: plain data about the nodes.
        evaluations: candidates that were scored.
        recipe: what repeats the run byte for byte, as TOML.
    """

    decision: Decision
    preset: str
    baseline: Score | None
    judged_by: str
    limit: float | None
    gap: Gap | None = None
    kernels: dict[str, int] = field(default_factory=dict)
    ranking: list[Region] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)
    evaluations: int = 0
    recipe: str = ""

    @property
    def model(self) -> ir.Model:
        """The result."""
        return self.decision.model

    @property
    def int8_share(self) -> float | None:
        """Share of the products that run in int8; None without products."""
        int8 = sum(n for name, n in self.kernels.items() if _is_int8(name))
        floats = sum(n for name, n in self.kernels.items() if name.split(".")[-1] in _PRODUCTS)
        return int8 / (int8 + floats) if int8 + floats else None

    def summary(self) -> str:
        """The figures that matter most, in one line."""
        decision, score = self.decision, self.decision.score
        parts = [f"{decision.status}: {decision.form}"]
        if score is not None and self.baseline is not None:
            unit = "dB" if score.metric == "psnr" else "" if score.metric == "custom" else "%"
            text = f"{score.metric} {self.baseline.value:.2f} -> {score.value:.2f} {unit}".rstrip()
            if score.interval is not None:
                low, high = score.interval
                text += f" (drop {score.drop:.2f}, 95 % [{low:.2f}, {high:.2f}])"
            parts.append(f"{text} on {score.samples} samples")
            if score.outputs:
                parts.append(f"SQNR {score.closeness:.1f} dB")
        for pair in decision.times:
            parts.append(
                f"batch {pair.batch}: {pair.before.p50:.3g} -> {pair.after.p50:.3g} ms "
                f"({pair.typical:.2f}x)"
            )
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON report."""
        decision = self.decision
        return {
            "status": decision.status,
            "form": decision.form,
            "preset": self.preset,
            "judged_by": self.judged_by,
            "max_drop": self.limit,
            "before": None if self.baseline is None else self.baseline.to_dict(),
            "after": None if decision.score is None else decision.score.to_dict(),
            "fake_real_gap": _gap_dict(self.gap),
            "latency": [pair.to_dict() for pair in decision.times],
            "speedup": round(decision.gain, 3) if decision.times else None,
            "forms_timed": decision.tried,
            "int8_kernel_share": self.int8_share,
            "kernels": self.kernels,
            "conversions_left": sum(self.kernels.get(name, 0) for name in _CONVERSIONS),
            "reasons": decision.reasons,
            "evaluations": self.evaluations,
            "steps": self.steps,
            "sensitivity": [region.to_dict() for region in self.ranking],
            "recipe": self.recipe,
            **self.engine,
        }


def _is_int8(name: str) -> bool:
    return name.split(".")[-1] in _INT8


def _gap_dict(gap: Gap | None) -> dict[str, Any] | None:
    if gap is None:
        return None
    return {
        "output": gap.output,
        "described_db": round(gap.fake, 3),
        "real_db": round(gap.real, 3),
        "gap_db": round(gap.decibels, 3),
    }
