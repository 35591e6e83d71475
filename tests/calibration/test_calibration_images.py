"""Images as inputs: pixels where they belong, defaults from the model, errors in one line."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim.calibration.image_options import ImageOptions, parse_options, resolve
from onnxslim.calibration.images import read_image
from onnxslim.calibration.streams import open_feeds
from onnxslim.errors import DataError, UsageError
from onnxslim.runtime.specs import InputSpec

FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8
NCHW = [InputSpec("x", FLOAT, ("N", 3, 8, 12))]
PLAIN = ImageOptions(mean=(0.0,), std=(1.0,), scale=1.0)


def image_module():
    return pytest.importorskip("PIL.Image", reason="needs the extra 'images'")


def write(path: Path, pixels: np.ndarray) -> Path:
    image_module().fromarray(pixels.astype(np.uint8)).save(path)
    return path


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows downwards, green to the right, blue is 200."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 200)], axis=-1)


def test_an_image_of_the_right_size_is_only_normalised(tmp_path: Path) -> None:
    pixels = gradient(8, 12)
    write(tmp_path / "a.png", pixels)
    options = ImageOptions(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), fit="stretch")
    (feed,) = open_feeds(tmp_path, NCHW, images=options)
    assert feed["x"].dtype == np.float32
    wanted = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
    np.testing.assert_allclose(feed["x"], wanted.transpose(2, 0, 1)[None], rtol=1e-5, atol=1e-6)


def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    pixels = gradient(40, 60)
    write(tmp_path / "a.png", pixels)
    options = ImageOptions(mean=(0.0,), std=(1.0,), scale=1.0, resize=40)
    (feed,) = open_feeds(tmp_path, NCHW, images=options)
    np.testing.assert_array_equal(feed["x"][0], pixels[16:24, 24:36].transpose(2, 0, 1))


def test_a_long_image_is_never_smaller_than_the_crop(tmp_path: Path) -> None:
    write(tmp_path / "a.png", gradient(100, 10))
    (feed,) = open_feeds(tmp_path, NCHW, images=ImageOptions(resize=8))
    assert feed["x"].shape == (1, 3, 8, 12)


def test_padding_keeps_the_whole_image(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((16, 16, 3), 50))
    options = ImageOptions(mean=(0.0,), std=(1.0,), scale=1.0, fit="pad")
    (feed,) = open_feeds(tmp_path, NCHW, images=options)
    assert feed["x"][0, :, :, 2:10].tolist() == np.full((3, 8, 8), 50).tolist()
    assert np.unique(feed["x"][0, :, :, [0, 1, 10, 11]]).tolist() == [114]


def test_layout_and_order_of_channels(tmp_path: Path) -> None:
    pixels = gradient(8, 12)
    write(tmp_path / "a.png", pixels)
    nhwc = [InputSpec("x", FLOAT, (None, 8, 12, 3))]
    options = ImageOptions(mean=(0.0,), std=(1.0,), scale=1.0, fit="stretch", order="BGR")
    (feed,) = open_feeds(tmp_path, nhwc, images=options)
    np.testing.assert_array_equal(feed["x"][0], pixels[:, :, ::-1])


def test_gray_images_and_raw_pixels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.full((8, 12, 3), 77))
    gray = [InputSpec("x", FLOAT, (1, 1, 8, 12))]
    (feed,) = open_feeds(tmp_path, gray)
    np.testing.assert_allclose(feed["x"], np.full((1, 1, 8, 12), 77 / 255), rtol=1e-6)
    raw = [InputSpec("x", UINT8, ("N", 3, 8, 12))]
    (feed,) = open_feeds(tmp_path, raw)
    assert feed["x"].dtype == np.uint8
    assert np.unique(feed["x"]).tolist() == [77]


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        (("N", 3, 8, 12), "NCHW", (8, 12)),
        (("N", 8, 12, 3), "NHWC", (8, 12)),
        ((1, 3, "H", "W"), "NCHW", (224, 224)),
        ((None, None, None, 3), "NHWC", (224, 224)),
        (None, "NCHW", (224, 224)),
        ((1, 1, 28, 28), "NCHW", (28, 28)),
    ],
)
def test_defaults_come_from_the_shape(shape, layout: str, size: tuple[int, int]) -> None:
    found, notes = resolve(ImageOptions(), InputSpec("x", FLOAT, shape), assumed=True)
    assert (found.layout, found.size) == (layout, size)
    assert found.resize == round(min(size) * 256 / 224)
    assert len(notes) == 1
    assert f"{size[0]} x {size[1]}" in notes[0]


def test_batches_and_order_of_files(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    for number in range(5):
        folder = tmp_path / "class" if number % 2 else tmp_path
        write(folder / f"{number}.png", np.full((8, 12, 3), number))
    (tmp_path / "notes.txt").write_text("no image")
    feeds = list(open_feeds(tmp_path, NCHW, batch_size=2, images=PLAIN))
    assert [feed["x"][:, 0, 0, 0].tolist() for feed in feeds] == [[0, 2], [4, 1], [3]]
    fixed = [InputSpec("x", FLOAT, (2, 3, 8, 12))]
    stream = open_feeds(tmp_path, fixed, images=PLAIN)
    assert (stream.count, len(list(stream))) == (2, 2)
    assert stream.notes == ["1 images do not fill a batch of 2: left out"]
    parts = [list(open_feeds(tmp_path, NCHW, batch_size=2).shard(i, 2)) for i in (1, 2)]
    assert [len(part) for part in parts] == [2, 1]


def test_jpeg_is_read(tmp_path: Path) -> None:
    image_module().fromarray(np.full((8, 12, 3), 90, np.uint8)).save(tmp_path / "a.JPG")
    (feed,) = open_feeds(tmp_path, NCHW, images=PLAIN)
    assert np.abs(feed["x"] - 90).max() <= 2


def test_an_image_with_alpha_or_palette(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.dstack([gradient(8, 12), np.full((8, 12), 128)]))
    (feed,) = open_feeds(tmp_path, NCHW, images=ImageOptions(fit="stretch", mean=(0,), scale=1))
    assert feed["x"].shape == (1, 3, 8, 12)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    image_module()
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n cut")
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image") as caught:
        list(open_feeds(tmp_path, NCHW))
    assert "\n" not in str(caught.value)
    whole = write(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    whole.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(whole, resolve(ImageOptions(), NCHW[0])[0], 3)


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        ([*NCHW, InputSpec("y", FLOAT, ("N",))], "images serve a model with one input"),
        ([InputSpec("x", FLOAT, ("N", 3))], "does not take images"),
        ([InputSpec("x", ir.DataType.INT64, ("N", 3, 8, 8))], "does not take images"),
        ([InputSpec("x", FLOAT, ("N", 4, 8, 8))], "wants 4 channels; images have 1 or 3"),
        ([InputSpec("x", FLOAT, (2, 3, 8, 8))], "1 images do not fill one batch of 2"),
    ],
)
def test_models_that_take_no_images(tmp_path: Path, specs, what: str) -> None:
    write(tmp_path / "a.png", gradient(8, 8))
    with pytest.raises(DataError, match=what):
        list(open_feeds(tmp_path, specs))


@pytest.mark.parametrize(
    "wrong",
    [
        {"fit": "squeeze"},
        {"layout": "CHW"},
        {"order": "GRB"},
        {"size": (0, 5)},
        {"resize": 0},
        {"std": (1.0, 0.0, 1.0)},
    ],
)
def test_options_that_cannot_be_meant(wrong) -> None:
    with pytest.raises(UsageError, match="image"):
        ImageOptions(**wrong)


def test_options_are_spelled_key_and_value() -> None:
    texts = ["size=224x192", "resize=256", "mean=0.5,0.25,0", "std=1", "scale=1", "fit=pad"]
    assert parse_options([*texts, "layout=NHWC", "order=BGR"]) == ImageOptions(
        (224, 192), 256, "pad", 1.0, (0.5, 0.25, 0.0), (1.0,), "NHWC", "BGR"
    )
    assert parse_options(["size=64"]) == ImageOptions((64, 64))
    assert parse_options([]) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sice=4", "did you mean size"),
        ("size", "want KEY=VALUE"),
        ("size=1x2x3", "'1x2x3' is no size"),
        ("mean=a,b", "'a,b' is no mean"),
        ("fit=x", "want crop, stretch or pad"),
    ],
)
def test_spellings_that_cannot_be_read(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_options([text])


def test_the_number_of_means_must_fit(tmp_path: Path) -> None:
    write(tmp_path / "a.png", gradient(8, 8))
    with pytest.raises(UsageError, match="image mean has 2 numbers for 3 channels"):
        open_feeds(tmp_path, NCHW, images=ImageOptions(mean=(0.1, 0.2)))


def test_without_pillow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    real = builtins.__import__

    def refuse(name: str, *rest):
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r"pip install onnxslim\[images\]"):
        open_feeds(tmp_path, NCHW)
