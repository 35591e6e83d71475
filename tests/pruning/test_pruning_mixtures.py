"""Mixtures of calibration samples: enough of them, valid ones, and always the same."""

from __future__ import annotations

import itertools

import numpy as np

from onnxslim.pruning.mixtures import Mixtures


def images(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.random((4, 1, 3, 5)).astype(np.float32)} for _ in range(count)]


def test_few_samples_become_thousands_of_the_same_form() -> None:
    given = images(8)
    made = Mixtures(given, 0)
    assert len(made) == 2048
    assert list(made[:8]) == given
    for number in (8, 9, 16, 17, 2047):
        content = made[number]["x"]
        assert content.dtype == np.float32
        assert content.shape == (4, 1, 3, 5)
        assert np.isfinite(content).all()
        assert not any(np.array_equal(content, one["x"]) for one in given)


def test_the_same_for_a_seed_and_others_for_another() -> None:
    given = images(3)
    assert np.array_equal(Mixtures(given, 1)[7]["x"], Mixtures(given, 1)[7]["x"])
    assert not np.array_equal(Mixtures(given, 1)[7]["x"], Mixtures(given, 2)[7]["x"])


def test_texts_cross_at_the_same_place_in_all_inputs() -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(600).reshape(10, 6, 10)
    given = [{"ids": part, "other": part + 1000} for part in ids]
    made = Mixtures(given, 0)
    assert len(made) > len(given)
    crossed = 0
    for number in range(10, 40):
        feed = made[number]
        assert feed["ids"].dtype == ids.dtype
        assert np.array_equal(feed["ids"] + 1000, feed["other"])
        for row in feed["ids"]:
            places = [np.argwhere(ids == token)[0] for token in row]
            # The token stands where it stood in the text it comes from, and two texts take part.
            assert [int(place[2]) for place in places] == list(range(10))
            texts = [tuple(place[:2].tolist()) for place in places]
            changes = sum(one != two for one, two in itertools.pairwise(texts))
            assert changes <= 1
            crossed += changes
    assert crossed > 100


def test_integers_of_other_shapes_are_left_alone() -> None:
    given = [{"x": one["x"], "length": np.arange(4) + 4 * n} for n, one in enumerate(images(5))]
    made = Mixtures(given, 0)
    for number in range(len(given), 40):
        assert np.array_equal(made[number]["length"], given[number % len(given)]["length"])


def test_nothing_is_made_of_one_sample_or_of_what_cannot_be_mixed() -> None:
    single = [{"x": np.ones((1, 3), np.float32)}]
    assert list(Mixtures(single, 0)) == single
    numbers = [{"n": np.array([1, 2])}, {"n": np.array([3, 4])}]
    assert list(Mixtures(numbers, 0)) == numbers
