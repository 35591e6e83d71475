"""No-ops of arithmetic, logic, casts and selection."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.ir.constants import array, scalar
from onnxslim.ir.schema import fixed_type, is_op
from onnxslim.rewrite.noops.rules import Facts, Rule, all_equal, is_integer, keeps_shape


def _neutral_right(facts: Facts, number: float) -> ir.Value | None:
    """``x op number`` when all elements of the constant are the number."""
    kept, constant = facts.input(0), facts.input(1)
    if kept is None or not all_equal(constant, number):
        return None
    return kept if keeps_shape(kept, [constant], facts.node.outputs[0]) else None


def _neutral_left(facts: Facts, number: float) -> ir.Value | None:
    """``number op x`` when all elements of the constant are the number."""
    constant, kept = facts.input(0), facts.input(1)
    if kept is None or not all_equal(constant, number):
        return None
    return kept if keeps_shape(kept, [constant], facts.node.outputs[0]) else None


def _since_broadcasting(facts: Facts) -> bool:
    """From opset 7 on operands broadcast both ways; before, attributes say how."""
    return facts.opset >= 7 and not facts.node.attributes


def _add(facts: Facts) -> ir.Value | None:
    """``x + 0`` of integers. Of floats only ``x + -0.0``: -0.0 + 0.0 is 0.0."""
    if not _since_broadcasting(facts):
        return None
    zero = 0 if is_integer(facts.input(0)) else -0.0
    return _neutral_right(facts, zero) or _neutral_left(facts, zero)


def _sub(facts: Facts) -> ir.Value | None:
    """``x - 0``; of floats not ``x - -0.0``, which is ``x + 0.0``."""
    return _neutral_right(facts, 0.0) if _since_broadcasting(facts) else None


def _mul(facts: Facts) -> ir.Value | None:
    if not _since_broadcasting(facts):
        return None
    return _neutral_right(facts, 1) or _neutral_left(facts, 1)


def _div(facts: Facts) -> ir.Value | None:
    return _neutral_right(facts, 1) if _since_broadcasting(facts) else None


def _pow(facts: Facts) -> ir.Value | None:
    return _neutral_right(facts, 1) if _since_broadcasting(facts) else None


def _and(facts: Facts) -> ir.Value | None:
    if not _since_broadcasting(facts):
        return None
    return _neutral_right(facts, True) or _neutral_left(facts, True) or _twice(facts)


def _or(facts: Facts) -> ir.Value | None:
    if not _since_broadcasting(facts):
        return None
    return _neutral_right(facts, False) or _neutral_left(facts, False) or _twice(facts)


def _xor(facts: Facts) -> ir.Value | None:
    if not _since_broadcasting(facts):
        return None
    return _neutral_right(facts, False) or _neutral_left(facts, False)


def _bitwise(facts: Facts) -> ir.Value | None:
    """BitwiseOr and BitwiseXor with zero."""
    return _neutral_right(facts, 0) or _neutral_left(facts, 0)


def _shift(facts: Facts) -> ir.Value | None:
    return _neutral_right(facts, 0)


def _twice(facts: Facts) -> ir.Value | None:
    """``x op x`` for an idempotent operation."""
    first = facts.input(0)
    return first if len(facts.node.inputs) == 2 and first is facts.input(1) else None


def _variadic(facts: Facts) -> ir.Value | None:
    """Sum, Max, Min or Mean of one operand."""
    return facts.input(0) if len(facts.node.inputs) == 1 else None


def _inverse(facts: Facts) -> ir.Value | None:
    """Not of Not, Neg of Neg, BitwiseNot of BitwiseNot."""
    inner = facts.node.inputs[0]
    producer = inner.producer() if inner is not None else None
    if producer is None or not is_op(producer, facts.node.op_type) or facts.node.attributes:
        return None
    return producer.inputs[0]


def _idempotent(facts: Facts) -> ir.Value | None:
    """Relu of Relu, Abs of Abs, Sign of Sign; rounding of what is rounded already."""
    inner = facts.node.inputs[0]
    producer = inner.producer() if inner is not None else None
    op_type = facts.node.op_type
    before = {*_ROUNDING, "Sign"} if op_type in _ROUNDING else {op_type}
    if producer is None or facts.node.attributes or producer.attributes:
        return None
    return inner if is_op(producer, *before) else None


def _cast(facts: Facts) -> ir.Value | None:
    kept, to = facts.input(0), facts.node.attributes.get("to")
    if kept is None or to is None or to.type != ir.AttributeType.INT:
        return None
    dtype = kept.dtype if kept.dtype is not None else fixed_type(kept)
    return kept if dtype is not None and int(dtype) == to.as_int() else None


def _cast_like(facts: Facts) -> ir.Value | None:
    kept, like = facts.input(0), facts.input(1)
    if kept is None or like is None or kept.dtype is None:
        return None
    return kept if kept.dtype == like.dtype else None


def _clip(facts: Facts) -> ir.Value | None:
    """Clip without bounds, of integers: of floats it makes infinities finite."""
    kept = facts.input(0)
    if facts.opset < 11 or not is_integer(kept):
        return None
    return kept if facts.input(1) is None and facts.input(2) is None else None


def _where(facts: Facts) -> ir.Value | None:
    """A condition that is constant and everywhere the same, or one value on both sides."""
    condition, chosen, other = facts.node.inputs
    if chosen is None or other is None:
        return None
    if chosen is not other:
        content = array(condition)
        if content is None or content.size == 0:
            return None
        if not content.any():
            chosen, other = other, chosen
        elif not content.all():
            return None
    return chosen if keeps_shape(chosen, [condition, other], facts.node.outputs[0]) else None


def _dropout(facts: Facts) -> ir.Value | None:
    """Dropout that is not training, or that drops nothing."""
    if facts.opset < 7:
        return facts.input(0) if facts.integer("is_test", 0) != 0 else None
    training = facts.input(2)
    if facts.opset < 12 or training is None or scalar(training) is False:
        return facts.input(0)
    ratio = facts.input(1)
    return facts.input(0) if ratio is not None and scalar(ratio) == 0 else None


def _reduce(facts: Facts) -> ir.Value | None:
    """No axes, and the attribute that says that this reduces nothing."""
    if facts.integer("noop_with_empty_axes", 0) == 0 or "axes" in facts.node.attributes:
        return None
    axes = facts.input(1)
    if axes is not None:
        content = array(axes)
        if content is None or content.size != 0:
            return None
    return facts.input(0)


_ROUNDING = frozenset({"Ceil", "Floor", "Round"})

RULES: dict[str, Rule] = {
    "Abs": _idempotent,
    "Add": _add,
    "And": _and,
    "BitShift": _shift,
    "BitwiseNot": _inverse,
    "BitwiseOr": _bitwise,
    "BitwiseXor": _bitwise,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _idempotent,
    "Clip": _clip,
    "Div": _div,
    "Dropout": _dropout,
    "Floor": _idempotent,
    "Max": _variadic,
    "Mean": _variadic,
    "Min": _variadic,
    "Mul": _mul,
    "Neg": _inverse,
    "Not": _inverse,
    "Or": _or,
    "Pow": _pow,
    # The other reductions still apply their function to every element.
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Relu": _idempotent,
    "Round": _idempotent,
    "Sign": _idempotent,
    "Sub": _sub,
    "Sum": _variadic,
    "Where": _where,
    "Xor": _xor,
}
