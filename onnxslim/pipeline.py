"""What a pass is, and how passes are strung together.

A `Pass` edits an ``onnx_ir.Model`` in place and says what it did in a `PassResult`. `Pipeline` and
`Fixpoint` are passes made of passes. The `Context` of a run is what passes share: the journal of
rewrites, the refusals, names, and the budget. Timing and verification are instruments around
passes, never code inside them.
"""

from __future__ import annotations

import abc
import enum
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from onnxslim.errors import OnnxSlimError, PassError
from onnxslim.ir.edit import Names

logger = logging.getLogger(__name__)


class Exactness(enum.Enum):
    """What a pass promises about the outputs of the model."""

    EXACT = "exact"  # the same bits for finite inputs
    ROUNDING = "rounding"  # the same real-number function, floats reassociated
    LOSSY = "lossy"  # another function; only when asked for


@dataclass(frozen=True)
class Rewrite:
    """One entry of the journal: which pass changed the graph where."""

    pass_name: str
    site: str
    detail: str = ""


@dataclass(frozen=True)
class Refusal:
    """A rewrite that a pass considered and left alone, and why."""

    pass_name: str
    site: str
    reason: str


@dataclass(frozen=True)
class Kept:
    """Channels of a group that stay, and why.

    Attributes:
        channels: how many.
        reason: why, as text.
        node: the node that holds them, as ``Op -> 'output'``; empty where no single node does.
        idle: they are constant somewhere or unread somewhere, and stay for this reason alone.
    """

    channels: int
    reason: str
    node: str
    idle: bool


@dataclass
class Explanation:
    """What became of a group of channels that can only go together.

    Attributes:
        site: the weight that makes them; ``tied`` are others that make the same ones.
        before: channels at first.
        after: channels at last.
        shapes: per weight, its shape before and after.
        removed: how many went, by reason.
        kept: how many stayed, by reason; what could go by itself comes first.
    """

    site: str
    tied: tuple[str, ...]
    before: int
    after: int
    shapes: dict[str, tuple[list[int], list[int]]]
    removed: dict[str, int]
    kept: list[Kept]


@dataclass
class PassResult:
    """Outcome of one run of one pass. ``changes`` 0 means that the graph is untouched."""

    changes: int = 0

    @property
    def modified(self) -> bool:
        return self.changes > 0


@dataclass
class PassTiming:
    """One line of the report: a pass (or a repetition of it), its changes and its time in ms."""

    name: str
    changes: int
    milliseconds: float
    exactness: Exactness


class Context:
    """What the passes of one run share.

    Args:
        model: the model the run works on.
        limit: at most so many rewrites are made in the whole run; None means no limit. The
            bisection of a mismatch repeats the same pipeline under limits until it has the culprit.
        disabled: rewrites that must not be made, as (pass name, site); a site of ``"*"`` switches
            the whole pass off.
        fold_growth: bytes by which constant folding may grow the stored model, in bytes.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        limit: int | None = None,
        disabled: Iterable[tuple[str, str]] = (),
        fold_growth: int = 0,
    ) -> None:
        self.journal: list[Rewrite] = []
        self.refusals: dict[tuple[str, str], Refusal] = {}
        self.explanations: dict[str, Explanation] = {}
        self.timings: list[PassTiming] = []
        self.warnings: list[str] = []
        self.fold_growth = fold_growth
        self.disabled = frozenset(disabled)
        self._limit = limit
        self._model = model
        self._names: Names | None = None

    def allow(self, owner: Pass, site: str, detail: str = "") -> bool:
        """Asks leave for one rewrite and, when it is given, writes it into the journal.

        Call it after the match is certain and before anything is changed; ``site`` names the place
        in a way that the next run of the same pipeline repeats (usually an output value's name).
        """
        if not self.enabled(owner) or (owner.name, site) in self.disabled:
            return False
        if self._limit is not None and len(self.journal) >= self._limit:
            return False
        self.journal.append(Rewrite(owner.name, site, detail))
        return True

    def enabled(self, owner: Pass) -> bool:
        """False when the whole pass is switched off for this run."""
        return (owner.name, "*") not in self.disabled

    def refuse(self, owner: Pass, site: str, reason: str) -> None:
        """Notes why a candidate was left alone; the report shows it, each once."""
        self.refusals.setdefault((owner.name, site), Refusal(owner.name, site, reason))

    def explain(self, found: Explanation) -> None:
        """Adds an account of a group of channels to what was said of it before."""
        earlier = self.explanations.setdefault(found.site, found)
        if earlier is found:
            return
        earlier.after, earlier.kept = found.after, found.kept
        for site, (before, after) in found.shapes.items():
            earlier.shapes[site] = (earlier.shapes.get(site, (before, after))[0], after)
        for reason, channels in found.removed.items():
            earlier.removed[reason] = earlier.removed.get(reason, 0) + channels

    def fresh_name(self, base: str) -> str:
        """A value name that the model does not use: ``base``, ``base_1``, ..."""
        if self._names is None:
            self._names = Names(self._model)
        return self._names.fresh(base)


Instrument = Callable[["Pass", ir.Model, PassResult], None]
"""Called after every leaf pass that changed something, e.g. to verify the graph."""


class Pass(abc.ABC):
    """Base of every pass.

    Subclasses are frozen dataclasses: the fields are the options. They hold no state between runs,
    print nothing, and read neither files nor the environment.

    Attributes:
        name: the name in kebab case, as the command line and the report know it.
        exactness: what the pass promises about outputs.
        idempotent: a second run changes nothing; tests check it.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness]
    idempotent: ClassVar[bool] = True

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Edits ``model`` in place; every rewrite is cleared with ``context.allow`` first."""

    def __call__(
        self, model: ir.Model, context: Context, instruments: Sequence[Instrument] = ()
    ) -> PassResult:
        """Runs the pass with timing, error wrapping and instruments."""
        if not context.enabled(self):
            return PassResult()
        started = time.perf_counter()
        try:
            result = self.run(model, context)
        except OnnxSlimError:
            raise
        except Exception as error:
            raise PassError(
                f"pass {self.name} failed: {type(error).__name__}: {error}; "
                f"leave it out with --skip-pass {self.name}",
                pass_name=self.name,
            ) from error
        spent = (time.perf_counter() - started) * 1000
        context.timings.append(PassTiming(self.name, result.changes, spent, self.exactness))
        logger.info("%s: %d changes, %.1f ms", self.name, result.changes, spent)
        if result.modified:
            for instrument in instruments:
                instrument(self, model, result)
        return result


@dataclass(frozen=True)
class Pipeline(Pass):
    """Runs passes one after the other."""

    passes: tuple[Pass, ...]
    name: ClassVar[str] = "pipeline"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, model: ir.Model, context: Context) -> PassResult:
        return self(model, context)

    def __call__(
        self, model: ir.Model, context: Context, instruments: Sequence[Instrument] = ()
    ) -> PassResult:
        total = PassResult()
        for inner in self.passes:
            total.changes += inner(model, context, instruments).changes
        return total


@dataclass(frozen=True)
class Fixpoint(Pass):
    """Repeats passes until none of them changes anything, at most ``max_iterations`` times.

    Reaching the limit is a warning in the report, not an error and not silence.
    """

    passes: tuple[Pass, ...]
    max_iterations: int = field(default=20)
    name: ClassVar[str] = "fixpoint"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, model: ir.Model, context: Context) -> PassResult:
        return self(model, context)

    def __call__(
        self, model: ir.Model, context: Context, instruments: Sequence[Instrument] = ()
    ) -> PassResult:
        total = PassResult()
        for _ in range(self.max_iterations):
            changes = sum(inner(model, context, instruments).changes for inner in self.passes)
            total.changes += changes
            if changes == 0:
                return total
        names = ", ".join(inner.name for inner in self.passes)
        context.warnings.append(
            f"no fixpoint after {self.max_iterations} rounds of {names}; the rest is left as it is"
        )
        return total


def leaves(root: Pass) -> Iterable[Pass]:
    """The passes inside nested pipelines, in order of first run."""
    if isinstance(root, Pipeline | Fixpoint):
        for inner in root.passes:
            yield from leaves(inner)
    else:
        yield root
