"""How images become inputs: options, their defaults from the model's input, and their spelling."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from onnxslim.errors import UsageError
from onnxslim.runtime.specs import InputSpec

# What most image classifiers were trained with: mean and deviation of the ImageNet photographs.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DEFAULT_SIZE = 224
"""Height and width, in pixels, where neither the options nor the model say."""

_SHORTER_SIDE = 256 / 224  # of the crop


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes an input.

    Attributes:
        size: height and width of the input; None takes them from the model, else 224.
        resize: length that the shorter side gets before the crop; None takes 256/224 of the size.
        fit: ``crop`` scales the shorter side and cuts the middle out, ``stretch`` scales both
            sides, ``pad`` scales the longer side and fills up with gray.
        scale: factor on pixels of 0 to 255, before mean and deviation.
        mean: subtracted, one number for all channels or one each; None is ImageNet's for three
            channels, 0 for others.
        std: divided by, likewise; None is ImageNet's for three channels, 1 for others.
        layout: ``NCHW`` or ``NHWC``; None takes what the model's input looks like.
        order: of the channels, ``RGB`` or ``BGR``.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    fit: Literal["crop", "stretch", "pad"] = "crop"
    scale: float = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        """Raises UsageError for values that cannot be meant."""
        if self.fit not in ("crop", "stretch", "pad"):
            raise UsageError(f"image fit {self.fit!r}: want crop, stretch or pad")
        if self.layout not in (None, "NCHW", "NHWC"):
            raise UsageError(f"image layout {self.layout!r}: want NCHW or NHWC")
        if self.order not in ("RGB", "BGR"):
            raise UsageError(f"image order {self.order!r}: want RGB or BGR")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise UsageError(f"image size {self.size}: want height and width")
        if self.resize is not None and self.resize < 1:
            raise UsageError(f"image resize {self.resize}: want a length in pixels")
        if self.std is not None and not all(self.std):
            raise UsageError(f"image std {self.std}: zero cannot be divided by")


def resolve(
    options: ImageOptions, spec: InputSpec, assumed: bool = False
) -> tuple[ImageOptions, list[str]]:
    """Fills in what was left open from the input's shape.

    Returns:
        Options without None, and a note when values were assumed.

    Raises:
        DataError: the input does not look like an image.
    """
    dims = spec.shape or (None, None, None, None)
    layout = options.layout or ("NHWC" if dims[3] in (1, 3) and dims[1] not in (1, 3) else "NCHW")
    height, width = dims[2:4] if layout == "NCHW" else dims[1:3]
    given = options.size or (None, None)
    size = tuple(
        want if isinstance(want, int) else one if one is not None else DEFAULT_SIZE
        for want, one in zip((height, width), given, strict=True)
    )
    is_color = (dims[1] if layout == "NCHW" else dims[3]) != 1
    mean = options.mean or (_MEAN if is_color else (0.0,))
    std = options.std or (_STD if is_color else (1.0,))
    resize = options.resize or round(min(size) * _SHORTER_SIDE)
    found = replace(
        options, layout=layout, size=(size[0], size[1]), mean=mean, std=std, resize=resize
    )
    notes = []
    if assumed and spec.numpy_dtype.kind != "u":
        text = "ImageNet mean and deviation" if is_color else "pixels from 0 to 1"
        notes.append(f"images: {layout}, {size[0]} x {size[1]}, RGB, {text} were assumed")
    return found, notes


def parse_options(texts: Sequence[str]) -> ImageOptions | None:
    """Options from ``KEY=VALUE`` texts; None when there are none.

    ``size=224x192`` (height, width; one number means both), ``mean=0.5,0.5,0.5``, ``std`` alike,
    ``resize=256``, ``scale=1``, ``fit=pad``, ``layout=NHWC``, ``order=BGR``.

    Raises:
        UsageError: an unknown key or a value that cannot be read.
    """
    if not texts:
        return None
    found: dict[str, Any] = {}
    known = [field.name for field in fields(ImageOptions)]
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise UsageError(f"--image {text!r}: want KEY=VALUE; {hint}")
        try:
            found[key] = _READ.get(key, str)(value)
        except ValueError as error:
            raise UsageError(f"--image {text!r}: {value!r} is no {key}") from error
    return ImageOptions(**found)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _size(text: str) -> tuple[int, int]:
    parts = [int(part) for part in text.split("x")]
    if len(parts) > 2:
        raise ValueError(text)
    return parts[0], parts[-1]


_READ: dict[str, Callable[[str], Any]] = {
    "size": _size,
    "resize": int,
    "scale": float,
    "mean": _numbers,
    "std": _numbers,
}
