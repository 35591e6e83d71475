"""What a pass is, and how passes are strung together.

A `Pass` edits an ``onnx_ir.Model`` in place and says what it did in a `PassResult`. `Pipeline` and
`Fixpoint` are passes made of passes. The `Context` of a run is what passes share: the journal of
rewrites, the refusals, names, and the budget. Timing and verification are instruments around
passes, never code inside them.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from onnxslim.errors import OnnxSlimError, PassError
from onnxslim.ir.edit import Names
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import nodes

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
    """Outcome of one run of one pass.

    Attributes:
        changes: rewrites made; 0 means that the graph is untouched.
        facts: values of which more is known than before, the graph being the same.
    """

    changes: int = 0
    facts: int = 0

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
        self._clock = 0
        self._depth = 0
        self._settled: dict[Hashable, int] = {}
        self._index: dict[str, list[Placed]] | None = None
        self._indexed_at = (-1, -1)

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

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Within it only passes edit the model, so what is known of it holds until the next edit.

        A pass that found nothing to do is then not run again before something has changed.
        """
        if self._depth == 0:
            self._clock += 1
            self._settled.clear()
            self._index = None
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def is_settled(self, owner: Pass) -> bool:
        """True when the last run of an equal pass found nothing, and nothing changed since."""
        return self._depth > 0 and self._settled.get(_identity(owner)) == self._clock

    def settle(self, owner: Pass, result: PassResult, journal_before: int) -> None:
        """Notes the outcome of a run for `is_settled`."""
        if result.changes or result.facts or len(self.journal) != journal_before:
            self._clock += 1
            self._index = None
        else:
            self._settled[_identity(owner)] = self._clock

    def holds(self, model: ir.Model, op_types: Collection[str]) -> bool:
        """True when the model has a node of one of these standard operators, anywhere."""
        index = self._current_index(model)
        return any(op_type in index for op_type in op_types)

    def nodes_of(self, model: ir.Model, *op_types: str) -> Iterator[ir.Node]:
        """The nodes of these standard operators, as `ir.traversal.nodes` orders them.

        The list is made before the first is yielded; nodes that are removed or moved to another
        graph meanwhile are skipped.
        """
        index = self._current_index(model)
        found = [each for op_type in op_types for each in index.get(op_type, ())]
        if len(op_types) > 1:
            found.sort(key=lambda each: each[0])
        for _, node, graph in found:
            if node.graph is graph:
                yield node

    def _current_index(self, model: ir.Model) -> dict[str, list[Placed]]:
        now = (self._clock, len(self.journal))
        if self._index is not None and self._depth and self._indexed_at == now:
            return self._index
        index: dict[str, list[Placed]] = {}
        for position, node in enumerate(nodes(model)):
            if node.domain in ONNX_DOMAINS:
                index.setdefault(node.op_type, []).append((position, node, node.graph))
        self._index, self._indexed_at = index, now
        return index


Placed = tuple[int, ir.Node, object]
"""A node with its position in the walk over the model and the graph it stands in."""


def _identity(owner: Pass) -> Hashable:
    """Equal for passes of one class with equal options, where these can be compared."""
    try:
        hash(owner)
    except TypeError:
        return id(owner)
    return owner


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
        roots: the standard operators at which its rewrites start; it is not run on a model that
            has none of them. Empty: it always runs.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness]
    idempotent: ClassVar[bool] = True
    roots: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Edits ``model`` in place; every rewrite is cleared with ``context.allow`` first."""

    def __call__(
        self, model: ir.Model, context: Context, instruments: Sequence[Instrument] = ()
    ) -> PassResult:
        """Runs the pass with timing, error wrapping and instruments."""
        if not context.enabled(self) or context.is_settled(self):
            return PassResult()
        if self.roots and not context.holds(model, self.roots):
            return PassResult()
        started = time.perf_counter()
        journal_before = len(context.journal)
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
        context.settle(self, result, journal_before)
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
        with context.steady():
            for inner in self.passes:
                total.changes += inner(model, context, instruments).changes
        return total


@dataclass(frozen=True)
class Fixpoint(Pass):
    """Repeats passes until none of them changes anything, at most ``max_iterations`` times.

    A pass that found nothing is run again only after something has changed.
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
        with context.steady():
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
