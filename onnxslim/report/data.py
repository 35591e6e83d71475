"""The report of a run, as data. `onnxslim.report.table` and the command line make text of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxslim.ir.cost import Snapshot
from onnxslim.pipeline import Explanation, PassTiming, Refusal, Rewrite


@dataclass
class Step:
    """The model after one step of the run, e.g. ``slim`` or ``quantize``.

    Attributes:
        name: of the step.
        snapshot: costs of the model after it.
        note: what it says of itself, in one line.
        details: plain data for the JSON report.
        accuracy: of the model after it on labels: ``metric``, ``value`` (a share, or dB) and
            ``samples``; None without labels.
        packed_bytes: size of the model after it as a packed file; None where that is not asked for.
    """

    name: str
    snapshot: Snapshot
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] | None = None
    packed_bytes: int | None = None


@dataclass
class PassSummary:
    """All runs of one pass together; ``milliseconds`` is their sum."""

    name: str
    changes: int
    milliseconds: float
    exactness: str


@dataclass
class Report:
    """Everything that a run can say about itself.

    Attributes:
        source: where the model came from.
        target: where it went, or None when nothing was written.
        before: the model as it was read.
        accuracy_before: of that model on labels, as in `Step`; None without labels.
        steps: the model after each step; the last one is the result.
        passes: per pass, its changes and its time.
        rewrites: the journal.
        refusals: what was left alone, and why.
        explanations: what became of every group of tied channels, where it was asked for.
        validation: the verdict, or the reason why there is none.
        warnings: what the user should know.
        files: the files written, with their bytes.
        seconds: wall time of the run.
    """

    source: str
    before: Snapshot
    target: str | None = None
    accuracy_before: dict[str, Any] | None = None
    steps: list[Step] = field(default_factory=list)
    passes: list[PassSummary] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    explanations: list[Explanation] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def after(self) -> Snapshot:
        return self.steps[-1].snapshot if self.steps else self.before

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; byte and time units are in the field names."""
        return {
            "source": self.source,
            "target": self.target,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "accuracy_before": self.accuracy_before,
            "steps": [_step_dict(step) for step in self.steps],
            "passes": [vars(summary) for summary in self.passes],
            "rewrites": [vars(entry) for entry in self.rewrites],
            "refusals": [vars(entry) for entry in self.refusals],
            "explanations": [asdict(entry) for entry in self.explanations],
            "validation": self.validation,
            "warnings": self.warnings,
            "files": self.files,
            "seconds": round(self.seconds, 3),
        }


def _step_dict(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "note": step.note,
        "accuracy_after": step.accuracy,
        "packed_file_bytes": step.packed_bytes,
        **step.snapshot.to_dict(),
        **step.details,
    }


def summarize(timings: Iterable[PassTiming]) -> list[PassSummary]:
    """Adds up the runs of each pass, in order of first run."""
    found: dict[str, PassSummary] = {}
    for timing in timings:
        summary = found.setdefault(
            timing.name, PassSummary(timing.name, 0, 0.0, timing.exactness.value)
        )
        summary.changes += timing.changes
        summary.milliseconds += timing.milliseconds
    return list(found.values())


def merged(first: Iterable[PassSummary], second: Iterable[PassSummary]) -> list[PassSummary]:
    """The sums of two runs, in order of first appearance."""
    found: dict[str, PassSummary] = {}
    for entry in (*first, *second):
        known = found.setdefault(entry.name, PassSummary(entry.name, 0, 0.0, entry.exactness))
        known.changes += entry.changes
        known.milliseconds += entry.milliseconds
    return list(found.values())
