"""Attention blocks for pruning tests, with seeded weights, in the forms that exporters write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from prune_models import Net


@dataclass
class Block:
    """One attention over ``(batch, sequence, width)``; dead parts are exactly zero.

    Attributes:
        heads: heads of queries.
        shared: heads of keys and values; fewer than ``heads`` for grouped queries.
        size: dimensions of a head.
        zero: by projection (q, k, v): (head, dimension) pairs that are zero, with their biases.
        unread: (head, dimension) pairs that the output projection does not read.
        bias: values of biases of zero dimensions, by projection.
        dynamic: target shapes are made of pieces, with batch and sequence taken from the input.
        packed: queries, keys and values come of one product: "split", "gather" or "".
        key: "direct" transposes keys once, "twice" makes heads first.
        scale: where products are scaled: "scores", "query" or "".
        mask: "" for none, "input", "constant" or "heads" (an input with one mask per head).
        share_shape: queries, keys and values read one target shape.
        repeat: how shared heads are repeated: "expand", "guarded" (an Expand that minds -1) or
            "gather".
        rotary: queries and keys are rotated by their position.
    """

    width: int = 64
    heads: int = 4
    size: int = 16
    shared: int | None = None
    sequence: int | str = 5
    zero: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    unread: Sequence[tuple[int, int]] = ()
    bias: Mapping[str, float] = field(default_factory=dict)
    dynamic: bool = False
    packed: str = ""
    key: str = "direct"
    scale: str = "scores"
    mask: str = ""
    share_shape: bool = False
    repeat: str = "expand"
    rotary: bool = False
    seed: int = 0
    opset: int = 17
    dtype: type = np.float32

    def __post_init__(self) -> None:
        self.net = Net(self.seed, dtype=self.dtype, opset=self.opset)
        self.kv = self.heads if self.shared is None else self.shared
        self.counter = 0

    # -- pieces -----------------------------------------------------------------------------------

    def ints(self, numbers: Sequence[int] | int) -> str:
        self.counter += 1
        return self.net.weight(f"n{self.counter}", np.array(numbers, dtype=np.int64))

    def shape(self, x: str, *rest: int, between: Sequence[int] = ()) -> str:
        """A target shape: batch, ``between``, sequence and the rest."""
        if not self.dynamic:
            if isinstance(self.sequence, int):
                return self.ints([-1, *between, self.sequence, *rest])
            return self.ints([0, *between, -1 if between else 0, *rest])
        shape = self.net.op("Shape", [x])
        pieces = []
        for axis in (0, 1):
            number = self.net.op("Gather", [shape, self.ints(axis)], axis=0)
            pieces.append(self.net.op("Unsqueeze", [number, self.ints([0])]))
        pieces[1:1] = [self.ints([number]) for number in between]
        pieces += [self.ints([number]) for number in rest]
        return self.net.op("Concat", pieces, axis=0)

    def matrix(self, name: str, heads: int) -> tuple[np.ndarray, np.ndarray]:
        count = heads * self.size
        weight = self.net.random(self.width, count, scale=self.width**-0.5)
        bias = self.net.random(count, scale=0.3)
        for head, place in self.zero.get(name, ()):
            weight[:, head * self.size + place] = 0
            bias[head * self.size + place] = self.bias.get(name, 0.0)
        return weight, bias

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        product = self.net.op("MatMul", [x, self.net.weight(f"{name}.w", weight)], weight.shape[1])
        return self.net.op("Add", [self.net.weight(f"{name}.b", bias), product], weight.shape[1])

    def projections(self, x: str) -> list[str]:
        """Queries, keys and values, each (batch, sequence, heads, size)."""
        parts = [
            (name, heads, *self.matrix(name, heads))
            for name, heads in (("q", self.heads), ("k", self.kv), ("v", self.kv))
        ]
        if self.packed == "gather":
            return self.gathered(x, parts)
        flat = self.split(x, parts) if self.packed else []
        flat = flat or [self.linear(x, name, weight, bias) for name, _, weight, bias in parts]
        target = self.shape(x, self.heads, self.size) if self.share_shape else None
        return [
            self.net.op("Reshape", [part, target or self.shape(x, heads, self.size)])
            for part, (_, heads, _, _) in zip(flat, parts, strict=True)
        ]

    def packed_linear(self, x: str, parts) -> str:
        weight = np.concatenate([weight for *_, weight, _ in parts], axis=1)
        return self.linear(x, "qkv", weight, np.concatenate([bias for *_, bias in parts]))

    def split(self, x: str, parts) -> list[str]:
        sizes = self.ints([heads * self.size for _, heads, _, _ in parts])
        first = self.net.op("Split", [self.packed_linear(x, parts), sizes], axis=2)
        names = [first, f"{first}_k", f"{first}_v"]
        self.net.nodes[-1].output.extend(names[1:])
        return names

    def gathered(self, x: str, parts) -> list[str]:
        target = self.shape(x, 3, self.heads, self.size)
        whole = self.net.op("Reshape", [self.packed_linear(x, parts), target])
        return [self.net.op("Gather", [whole, self.ints(part)], axis=2) for part in range(3)]

    def repeated(self, x: str, source: str) -> str:
        """(batch, kv, sequence, size) with every head repeated."""
        times = self.heads // self.kv
        if times == 1:
            return x
        if self.repeat == "gather":
            picked = np.repeat(np.arange(self.kv), times)
            return self.net.op("Gather", [x, self.ints(picked.tolist())], axis=1)
        wide = self.net.op("Unsqueeze", [x, self.ints([2])])
        wide = self.net.op("Expand", [wide, self.wide(source, times)])
        return self.net.op("Reshape", [wide, self.shape(source, self.size, between=[self.heads])])

    def wide(self, source: str, times: int) -> str:
        if self.dynamic:
            shape = self.shape(source, self.size, between=[self.kv, times])
            if self.repeat != "guarded":
                return shape
            same = self.net.op("Equal", [shape, self.ints([-1] * 5)])
            return self.net.op("Where", [same, self.ints([1] * 5), shape])
        return self.ints([1, self.kv, times, 1, 1])

    def rotated(self, x: str) -> str:
        half = self.size // 2
        angle = self.net.rng.random((self.sequence, half), dtype=np.float32).astype(self.dtype)
        cos, sin = (np.concatenate([part(angle)] * 2, axis=1) for part in (np.cos, np.sin))
        low = self.net.op("Slice", [x, *map(self.ints, ([0], [half], [3]))])
        high = self.net.op("Slice", [x, *map(self.ints, ([half], [self.size], [3]))])
        turned = self.net.op("Concat", [self.net.op("Neg", [high]), low], axis=3)
        self.counter += 1
        first = self.net.op("Mul", [x, self.net.weight(f"cos{self.counter}", cos)])
        second = self.net.op("Mul", [turned, self.net.weight(f"sin{self.counter}", sin)])
        return self.net.op("Add", [first, second])

    def masked(self, scores: str) -> str:
        if not self.mask:
            return scores
        if self.mask == "constant":
            blocked = np.triu(np.full((self.sequence, self.sequence), -1e9), 1)
            return self.net.op("Add", [scores, self.net.weight("mask", blocked.astype(self.dtype))])
        count = self.heads if self.mask == "heads" else 1
        mask = self.net.input("mask", ["n", count, self.sequence, self.sequence])
        return self.net.op("Add", [scores, mask])

    # -- the block --------------------------------------------------------------------------------

    def build(self, x: str) -> str:
        """From (batch, sequence, width) to the same."""
        number = self.net.weight("scale", np.array(self.size**-0.5, dtype=self.dtype))
        query, key, value = self.projections(x)
        query, value = (
            self.net.op("Transpose", [part], perm=[0, 2, 1, 3]) for part in (query, value)
        )
        direct = self.key == "direct" and self.kv == self.heads and not self.rotary
        if direct:
            key = self.net.op("Transpose", [key], perm=[0, 2, 3, 1])
        else:
            key = self.net.op("Transpose", [key], perm=[0, 2, 1, 3])
            if self.rotary:
                query, key = self.rotated(query), self.rotated(key)
            key, value = self.repeated(key, x), self.repeated(value, x)
            key = self.net.op("Transpose", [key], perm=[0, 1, 3, 2])
        if self.scale == "query":
            query = self.net.op("Mul", [query, number])
        scores = self.net.op("MatMul", [query, key], out="scores")
        if self.scale == "scores":
            scores = self.net.op("Mul", [scores, number])
        scores = self.net.op("Softmax", [self.masked(scores)], axis=-1, out="weights")
        mixed = self.net.op("MatMul", [scores, value], out="mixed")
        mixed = self.net.op("Transpose", [mixed], perm=[0, 2, 1, 3], out="turned")
        count = self.heads * self.size
        flat = self.net.op("Reshape", [mixed, self.shape(x, count)], count)
        weight = self.net.random(count, self.width, scale=count**-0.5)
        for head, place in self.unread:
            weight[head * self.size + place] = 0
        return self.linear(flat, "o", weight, self.net.random(self.width, scale=0.3))

    def whole(self, *outputs: str):
        """The model: input ``x``, and the block's result besides other outputs."""
        x = self.net.input("x", ["n", self.sequence, self.width], axis=2)
        return self.net.model(self.build(x), *outputs)


def whole_heads(heads: Sequence[int], size: int = 16) -> list[tuple[int, int]]:
    """All dimensions of these heads."""
    return [(head, place) for head in heads for place in range(size)]
