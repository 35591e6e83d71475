"""`calibrate`: right for every grouping, shape and source; the same bits for every sharding."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import onnx.printer
import onnx_ir as ir
import pytest
from graph_check import parse
from onnx import numpy_helper

from onnxslim import io
from onnxslim.calibration.collect import Collector
from onnxslim.calibration.run import calibrate, make_plan, model_digest
from onnxslim.calibration.statistics import TensorStatistics
from onnxslim.calibration.store import Calibration, merge_all
from onnxslim.calibration.streams import open_feeds
from onnxslim.errors import DataError, UsageError
from onnxslim.runtime.specs import input_specs

MODEL = """
net (float[N,M] x, int64[N] ids) => (float[N,M] y, float z, float[K,M] kept)
<float[2] w = {1, 2}> {
   a = Neg (x)
   b = Exp (a)
   y = Add (b, x)
   k = Cast <to = 1> (ids)
   z = ReduceSum <keepdims = 0> (k)
   c = Constant <value = float[1] {7}> ()
   d = Neg (c)
   rows = NonZero (ids)
   row = Squeeze (rows)
   kept = Gather (x, row)
}
"""
NAMES = ["x", "a", "b", "y", "k", "z", "kept"]
SIMPLE = "net (float[N,3] x) => (float[N,3] y) { h = Tanh (x)  y = Mul (h, h) }"
RNG = np.random.default_rng(0)


def model():
    return parse(MODEL)


def feeds(count: int = 6, width: int | None = None) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {
            "x": rng.standard_normal((n, width or m)).astype(np.float32),
            "ids": rng.integers(0, 3, n),
        }
        for n, m in [(4, 3), (2, 5), (1, 7), (5, 2), (3, 3), (0, 4)][:count]
    ]


def expected(of_feeds: list[dict[str, np.ndarray]]) -> dict[str, TensorStatistics]:
    """Statistics by numpy alone, feed by feed."""
    found = {name: TensorStatistics() for name in NAMES}
    for feed in of_feeds:
        x, ids = feed["x"], feed["ids"]
        values = {"x": x, "a": -x, "k": ids, "z": ids.sum(), "kept": x[ids != 0]}
        for name, value in values.items():
            found[name].add(np.asarray(value, np.float32))
    return found


@pytest.mark.parametrize("budget", [1, 100, 1 << 28])
def test_statistics_are_those_of_all_values(budget: int) -> None:
    found = calibrate(model(), feeds(), budget=budget)
    assert sorted(found.tensors) == sorted(NAMES)  # no weights, no constants
    assert (found.feeds, found.samples) == (6, 15)
    for name, wanted in expected(feeds()).items():
        if name in ("b", "y"):
            continue  # numpy's exponential is another
        one = Calibration("", {name: found.tensors[name]}).to_bytes()
        assert one == Calibration("", {name: wanted}).to_bytes(), name
    exp = np.exp(-np.concatenate([feed["x"].ravel() for feed in feeds()]))
    assert found.tensors["b"].high == pytest.approx(exp.max(), rel=1e-6)
    assert found.tensors["b"].count == exp.size


def test_the_budget_changes_nothing() -> None:
    parts = [calibrate(model(), feeds(), budget=budget).to_bytes() for budget in (1, 60, 1 << 28)]
    assert parts[0] == parts[1] == parts[2]


@pytest.mark.parametrize("shards", [1, 2, 3, 10])
def test_shards_merge_to_the_same_bytes(tmp_path: Path, shards: int) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=RNG.standard_normal((40, 3)).astype(np.float32))
    whole = calibrate(parse(SIMPLE), str(data), batch_size=3)
    assert (whole.feeds, whole.samples) == (14, 40)  # the last feed is one sample
    order = np.random.default_rng(shards).permutation(shards) + 1
    parts = [
        calibrate(parse(SIMPLE), str(data), batch_size=3, shard=(int(i), shards)) for i in order
    ]
    assert sum(part.samples for part in parts) == 40
    assert merge_all(parts).to_bytes() == whole.to_bytes()
    stored = [Calibration.from_bytes(part.to_bytes()) for part in reversed(parts)]
    assert merge_all(stored).to_bytes() == whole.to_bytes()


def test_more_shards_than_feeds() -> None:
    data = [{"x": RNG.standard_normal((4, 3)).astype(np.float32)} for _ in range(2)]
    parts = [calibrate(parse(SIMPLE), data, shard=(number, 5)) for number in range(1, 6)]
    assert [part.samples for part in parts] == [4, 4, 0, 0, 0]
    assert [part.notes for part in parts] == [[]] * 5
    merged = merge_all(parts)
    assert merged.to_bytes() == calibrate(parse(SIMPLE), data).to_bytes()
    few = merge_all([parts[0], parts[2]])
    assert few.notes == ["only 4 calibration samples: ranges may be too narrow"]
    with pytest.raises(DataError, match="no calibration samples in any of the parts"):
        merge_all(parts[2:])


def work(job: tuple[str, str, int]) -> bytes:
    return calibrate(job[0], job[1], shard=(job[2], 2)).to_bytes()


def test_workers_in_other_processes(tmp_path: Path) -> None:
    data, path = tmp_path / "data.npy", tmp_path / "model.onnx"
    np.save(data, RNG.standard_normal((20, 3)).astype(np.float32))
    io.save(parse(SIMPLE), path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(work, [(str(path), str(data), number) for number in (2, 1)])
    merged = merge_all(map(Calibration.from_bytes, parts))
    assert merged.to_bytes() == calibrate(path, data).to_bytes()


def test_small_tensors_wait_to_be_counted() -> None:
    many = [{"x": RNG.standard_normal((3, 3)).astype(np.float32)} for _ in range(4000)]
    collector = Collector(parse(SIMPLE), ["x"])
    wanted = TensorStatistics()
    for feed in many:
        collector.add(feed)
        wanted.add(feed["x"])
    found = collector.statistics()["x"]
    assert found.count == 36_000
    np.testing.assert_array_equal(found.bins, wanted.bins)
    assert (found.low, found.high) == (wanted.low, wanted.high)


def test_variable_lengths_do_not_run_the_model_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(parse(SIMPLE), ["h", "y"])
    measured = []
    session = collector._session
    run = session.run
    monkeypatch.setattr(session, "run", lambda *args: measured.append(1) or run(*args))
    for length in (9, 3, 8, 9, 1, 12, 11, 2):
        collector.add({"x": np.ones((length, 3), np.float32)})
    assert len(measured) == 2  # 9, then 12: the others are no longer than what was measured


def test_zero_size_tensors() -> None:
    text = """net (float[N,4] x, float[N,P,4] past) => (float[N,Q,4] present, float[N,Q] s) {
        one = Constant <value_ints = [1]> ()
        row = Unsqueeze (x, one)
        present = Concat <axis = 1> (past, row)
        s = ReduceSum <keepdims = 0> (present, two)
    }"""
    text = text.replace("one = Constant", "two = Constant <value_ints = [2]> ()\n one = Constant")
    data = [
        {"x": np.ones((2, 4), np.float32), "past": np.ones((2, n, 4), np.float32)} for n in (0, 3)
    ]
    found = calibrate(parse(text), data)
    assert found.tensors["past"].count == 24
    assert found.tensors["present"].count == 8 + 32
    only_empty = calibrate(parse(text), data[:1])
    assert only_empty.tensors["past"].count == 0
    assert Calibration.from_bytes(only_empty.to_bytes()).tensors["past"].high == -np.inf


def test_other_float_types_are_taken_in() -> None:
    text = """net (float16[N] x) => (double[N] d) {
        h = Neg (x)
        d = Cast <to = 11> (h)
    }"""
    data = [{"x": np.array([1, -2, 3], np.float16)}]
    found = calibrate(parse(text), data)
    assert (found.tensors["h"].low, found.tensors["h"].high) == (-3, 2)
    assert (found.tensors["d"].low, found.tensors["d"].count) == (-3, 3)


def test_inner_infinity_is_counted() -> None:
    text = "net (float[N] x) => (float[N] y) { h = Log (x)  y = Relu (h) }"
    found = calibrate(parse(text), [{"x": np.array([0, 1, np.e, -1], np.float32)}])
    h = found.tensors["h"]
    assert (h.count, h.inf, h.nan) == (2, 1, 1)
    assert h.high == pytest.approx(1)


def test_channels() -> None:
    x = RNG.standard_normal((6, 3)).astype(np.float32)
    found = calibrate(parse(SIMPLE), [{"x": x[:4]}, {"x": x[4:]}], tensors=["h"], channels={"x": 1})
    assert sorted(found.tensors) == ["h", "x"]
    np.testing.assert_array_equal(found.tensors["x"].channel_max, np.abs(x).max(0))
    assert found.tensors["h"].channel_max is None


def test_the_key_is_of_model_and_plan() -> None:
    base = make_plan(parse(SIMPLE))
    assert base.key == make_plan(parse(SIMPLE)).key
    assert base.names == ("x", "h", "y")
    assert model_digest(parse(SIMPLE)) == base.model_digest
    other = parse(SIMPLE.replace("Tanh", "Neg"))
    keys = {
        make_plan(parse(SIMPLE), ["h"]).key,
        make_plan(parse(SIMPLE), channels={"h": 1}).key,
        make_plan(other).key,
        base.key,
    }
    assert len(keys) == 4


def test_a_path_and_bytes_are_models_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    io.save(parse(SIMPLE), path)
    x = [np.ones((2, 3), np.float32)]
    results = {
        calibrate(one, x).to_bytes() for one in (path, str(path), path.read_bytes(), io.load(path))
    }
    assert len(results) == 1


def test_unknown_tensors_and_shards() -> None:
    with pytest.raises(UsageError, match="'hh' is no floating-point tensor"):
        calibrate(parse(SIMPLE), [], tensors=["hh"])
    with pytest.raises(UsageError, match="did you mean ids_float"):
        make_plan(parse(MODEL.replace("k =", "ids_float =").replace("(k)", "(ids_float)")), ["ids"])
    with pytest.raises(UsageError, match="shard 3/2"):
        calibrate(parse(SIMPLE), [], shard=(3, 2))


def test_feeds_are_taken_one_at_a_time_and_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []

    def stream():
        for number in range(10):
            assert len(seen) == number
            yield {"x": np.full((1, 3), number, np.float32)}

    calibrate(parse(SIMPLE), stream(), progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (10, 10)
    calibrate(parse(SIMPLE), list(stream_of(3)), progress=lambda *pair: seen.append(pair))
    assert seen[-3:] == [(1, 3), (2, 3), (3, 3)]


def stream_of(count: int):
    for number in range(count):
        yield np.full((1, 3), number, np.float32)


class Tensor:
    """What tensors of other packages look like."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content
        self.detached = False

    def detach(self) -> Tensor:
        self.detached = True
        return self

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        assert self.detached
        return self.content


class Columns(list):
    """A data set with named columns, more than the model wants."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        super().__init__(rows)
        self.column_names = list(rows[0])


@pytest.mark.parametrize(
    "source",
    [
        [{"x": np.ones((1, 3), np.float32)}],
        [(np.ones((1, 3), np.float32),)],
        [[np.ones((1, 3), np.float32)]],
        [np.ones((1, 3), np.float32)],
        [np.ones(3, np.float32)],
        [{"x": np.ones((1, 3), np.float64)}],
        [{"x": [1.0, 1.0, 1.0]}],
        [{"x": Tensor(np.ones((1, 3), np.float32))}],
        iter([{"x": np.ones((1, 3), np.float32)}]),
        lambda: iter([np.ones((1, 3), np.float32)]),
    ],
)
def test_samples_of_many_kinds(source) -> None:
    found = calibrate(parse(SIMPLE), source)
    assert (found.samples, found.tensors["x"].count, found.tensors["x"].low) == (1, 3, 1.0)


def test_a_data_set_with_columns() -> None:
    rows = Columns([{"x": [1.0, 2.0, 3.0], "label": 4}, {"x": [5.0, 6.0, 7.0], "label": 5}])
    found = calibrate(parse(SIMPLE), rows)
    assert (found.samples, found.tensors["x"].high) == (2, 7.0)


def test_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_calibration_data.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for number in range(9):\n"
        "        yield {'x': np.full((2, 3), number, np.float32)}\n"
        "listed = [np.zeros((1, 3), np.float32) + 5]\n"
    )
    found = calibrate(parse(SIMPLE), "my_calibration_data:samples")
    assert (found.feeds, found.samples, found.tensors["x"].high) == (9, 18, 8.0)
    assert calibrate(parse(SIMPLE), "my_calibration_data:listed").tensors["x"].high == 5.0
    assert str(tmp_path) not in sys.path


def test_npz_of_every_kind_give_the_same(tmp_path: Path) -> None:
    x = RNG.standard_normal((21, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x)
    np.savez_compressed(tmp_path / "b.npz", x=x)
    np.save(tmp_path / "c.npy", x)
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(x))
    np.savez(tmp_path / "e.npz", x=x.astype(">f4"))
    folder = tmp_path / "folder"
    folder.mkdir()
    np.savez(folder / "1.npz", x=x[:8])
    np.savez(folder / "2.npz", x=x[8:])
    names = ["a.npz", "b.npz", "c.npy", "d.npz", "e.npz", "folder"]
    results = {calibrate(parse(SIMPLE), str(tmp_path / name)).to_bytes() for name in names}
    assert len(results) == 1


def test_an_npz_is_not_read_as_a_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((50, 3), np.float32))
    stream = open_feeds(tmp_path / "a.npz", input_specs(parse(SIMPLE)), batch_size=10)
    assert stream.count == 5
    for _, load in stream.loaders():
        assert not any(isinstance(part, np.ndarray) for part in load.feed.values())  # type: ignore[attr-defined]
    assert [feed["x"].shape for feed in stream] == [(10, 3)] * 5
    assert [feed["x"].shape for feed in stream] == [(10, 3)] * 5  # and again


def test_folders_of_test_data(tmp_path: Path) -> None:
    x = RNG.standard_normal((2, 2, 3)).astype(np.float32)
    for number in (10, 2):
        folder = tmp_path / f"test_data_set_{number}"
        folder.mkdir()
        for index, content in enumerate((x[0] * number, np.arange(2))):
            tensor = numpy_helper.from_array(content, "" if index else "x")
            (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
        (folder / "output_0.pb").write_bytes(b"never read")
    specs = input_specs(model())
    got = list(open_feeds(tmp_path, specs))
    assert [feed["x"][0, 0] for feed in got] == [x[0, 0, 0] * 2, x[0, 0, 0] * 10]
    assert got[0]["ids"].tolist() == [0, 1]
    single = list(open_feeds(tmp_path / "test_data_set_2", specs))
    np.testing.assert_array_equal(single[0]["x"], got[0]["x"])


def test_the_model_stays_as_it_is() -> None:
    graph = model()
    before = onnx.printer.to_text(io.to_proto(graph))
    calibrate(graph, feeds())
    assert onnx.printer.to_text(io.to_proto(graph)) == before


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from onnxslim.cli.app import main

    monkeypatch.chdir(tmp_path)
    io.save(parse(SIMPLE), "m.onnx")
    np.savez("d.npz", x=RNG.standard_normal((40, 3)).astype(np.float32))

    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["onnxslim", "calibrate", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0

    command("m.onnx", "d.npz", "--out", "all.npz")
    assert "3 tensors, 40 samples in 5 feeds" in capsys.readouterr().out
    for number in "123":
        command("m.onnx", "d.npz", "--out", f"{number}.npz", "--shard", f"{number}/3", "-q")
    command("--merge", "3.npz", "1.npz", "2.npz", "--out", "merged.npz", "--json", "-")
    assert '"samples": 40' in capsys.readouterr().out
    assert Path("merged.npz").read_bytes() == Path("all.npz").read_bytes()


def test_models_beyond_one_file_have_a_digest_of_graph_and_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxslim.calibration.run._ONE_FILE", 10)
    first = model_digest(model())
    assert first == model_digest(model())
    other = model()
    weight = next(v for v in other.graph.initializers.values() if v.const_value is not None)
    weight.const_value = ir.tensor(weight.const_value.numpy() + 1, name=weight.name)
    assert model_digest(other) != first
