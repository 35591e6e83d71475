"""Takes back passes that do not pay: without which the model runs faster, measured side by side.

Which rewrite pays depends on shapes, on the processor and on what the runtime fuses by itself, so
on demand it is not believed but measured. A group is a pass: the pipeline runs again without it,
and the two results are timed in turn. Only a difference that every series of rounds shows, beyond
the noise, counts.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxslim.errors import DataError
from onnxslim.runtime.specs import Feed
from onnxslim.validated_run import Run, ValidatedRun

# A pass is taken back when the model is faster without it by more than this, in every series.
MARGIN = 1.02

# Passes that replace nodes by others; the rest only removes, and what is not there costs nothing.
_GROUPS = ("fuse-", "merge-", "sink-", "split-", "run-onnxoptimizer", "eliminate-zeroed-channels")


def keep_what_pays(run_of: ValidatedRun, run: Run) -> tuple[ValidatedRun, Run]:
    """The run without the passes that make the model slower, validated again.

    Args:
        run_of: how the model was made.
        run: its outcome.

    Returns:
        A run whose notes say what was measured, and how to repeat it.

    Raises:
        RuntimeRefusedError: a model cannot be opened or run.
    """
    feed = _feed(run_of)
    groups = sorted(
        {entry.pass_name for entry in run.context.journal if _is_group(entry.pass_name)}
    )
    notes: list[str] = []
    for number, name in enumerate(groups):
        run_of.progress("measuring", number, len(groups))
        shorter = replace(run_of, disabled=run_of.disabled | {(name, "*")})
        trial = replace(shorter, check=replace(run_of.check, enabled=False)).run()
        found = _gain(run.model, trial.model, feed)
        if found is None:
            continue
        other = shorter.run()  # validated this time
        notes.append(
            f"{name} was taken back: {found[0]:.3f} ms a run with it, {found[1]:.3f} ms without"
        )
        run_of, run = shorter, other
    run_of.progress("measuring", len(groups), len(groups))
    kept = len(groups) - len(notes)
    run.notes.extend(
        [*notes, f"latency was measured without each of {len(groups)} passes; {kept} stayed"]
    )
    return run_of, run


def _is_group(name: str) -> bool:
    return name.startswith(_GROUPS)


def _gain(with_it: ir.Model, without: ir.Model, feed: Feed) -> tuple[float, float] | None:
    """Milliseconds with and without a pass, if the model is faster without it."""
    from onnxslim.quantization.latency import race

    times = race({"with": with_it, "without": without}, feed)
    pairs = zip(times["with"].least, times["without"].least, strict=True)
    if all(one > MARGIN * other for one, other in pairs):
        return times["with"].best, times["without"].best
    return None


def _feed(run_of: ValidatedRun) -> Feed:
    from onnxslim.calibration.feeds import generate_feeds

    if run_of.check.feeds:
        return dict(run_of.check.feeds[0])
    feeds = generate_feeds(run_of.original, seed=run_of.check.seed, count=1)
    if not feeds:
        raise DataError("--measure: no inputs could be generated; give them with --feeds FILE.npz")
    return feeds[0]
