"""The store: exact files out, every tensor once, upkeep, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pack_models import model_of, nested, normal, raw_tensor, with_data_files, written

from onnxslim import Store
from onnxslim.errors import PackError, StoreError, UsageError
from onnxslim.packing import list_tensors, pack, unpack
from onnxslim.store.names import default_name, version_key


def variant(*seeds: int) -> onnx.ModelProto:
    """A model of one tensor of 128 kB for each seed; the names say nothing."""
    tensors = [
        raw_tensor(f"w{position}", 1, [256, 128], normal(1 << 15, seed=seed))
        for position, seed in enumerate(seeds)
    ]
    return model_of(tensors, doc_string=str(seeds))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "objects").rglob("*") if path.is_file())


def test_models_come_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    turned = np.random.default_rng(0).standard_normal((120, 90)).astype("<f4")
    derived = [turned, np.ascontiguousarray(turned.T), turned[30:60]]
    models = {
        "nested": nested(),
        "derived": model_of([numpy_helper.from_array(a, f"t{n}") for n, a in enumerate(derived)]),
        "variant": variant(1, 2, 1),
        "empty": model_of([]),
    }
    for name, model in models.items():
        data = written(model, tmp_path / f"{name}.onnx").read_bytes()
        added = store.add(tmp_path / f"{name}.onnx")
        assert (added.name, added.version, added.raw_bytes) == (name, "1", len(data))
        assert store.get(name, tmp_path / "back.onnx") == [str(tmp_path / "back.onnx")]
        assert (tmp_path / "back.onnx").read_bytes() == data
        stream = io.BytesIO()
        assert store.get(f"{name}@1", stream) == []
        assert stream.getvalue() == data
    assert store.check().clean


def test_data_files_come_back_too(store: Store, tmp_path: Path) -> None:
    model, names = with_data_files(tmp_path / "in")
    store.add(model, "big")
    (tmp_path / "out").mkdir()
    store.get("big", tmp_path / "out" / "model.onnx")
    for name in [*names, "model.onnx"]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert sorted(store.models().models[0].files) == names
    with pytest.raises(PackError, match="give a path"):
        store.get("big", io.BytesIO())


def test_equal_tensors_are_stored_once(store: Store, tmp_path: Path) -> None:
    first = store.add(written(variant(1, 2, 3, 4), tmp_path / "a.onnx"))
    second = store.add(written(variant(4, 3, 9), tmp_path / "b.onnx"))
    assert first.shared_bytes == 0
    assert second.shared_bytes == 2 * (1 << 17)
    assert second.new_bytes < 0.4 * second.raw_bytes
    listing = store.models()
    assert listing.stored_bytes < disk_bytes(tmp_path / "store") < listing.stored_bytes + 200
    assert listing.raw_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.onnx"))
    a, b = listing.models
    assert a.own_bytes + b.own_bytes < listing.stored_bytes < a.stored_bytes + b.stored_bytes
    assert 0.4 < a.shared < 0.6 < b.shared < 0.7


def test_tensors_that_pack_with_their_neighbours_are_shared_too(
    store: Store, tmp_path: Path
) -> None:
    """Repetitive tensors, which a packed file keeps with the graph."""
    text = np.tile(np.arange(700, dtype="<i8"), 20)
    models = [model_of([numpy_helper.from_array(text, name)], doc_string=name) for name in "ab"]
    packed = tmp_path / "p.onnxz"
    pack(written(models[0], tmp_path / "a.onnx"), packed)
    assert [item.codec for item in list_tensors(packed)] == ["graph"]
    store.add(tmp_path / "a.onnx")
    assert store.add(written(models[1], tmp_path / "b.onnx")).shared_bytes == text.nbytes


def test_content_of_another_width_is_the_same_object(store: Store, tmp_path: Path) -> None:
    """The same bytes as floats and as bytes are cut differently; any cut must do."""
    data = normal(1 << 20, seed=3)
    floats = written(model_of([raw_tensor("f", 1, [1 << 20], data)]), tmp_path / "f.onnx")
    octets = written(model_of([raw_tensor("o", 2, [1 << 22], data)]), tmp_path / "o.onnx")
    store.add(floats)
    assert store.add(octets).shared_bytes == len(data)
    for name, path in (("f", floats), ("o", octets)):
        store.get(name, tmp_path / "back.onnx")
        assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_packed_models_in_and_out(store: Store, tmp_path: Path) -> None:
    path = written(variant(1, 2), tmp_path / "m.onnx")
    pack(path, tmp_path / "m.onnxz", profile="stdlib")
    added = store.add(tmp_path / "m.onnxz")
    assert (added.name, added.raw_bytes) == ("m", path.stat().st_size)
    assert store.add(path).known
    store.get("m", tmp_path / "out.onnxz")
    unpack(tmp_path / "out.onnxz", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert os.listdir(tmp_path / "store" / "tmp") == []


def test_versions(store: Store, tmp_path: Path) -> None:
    paths = [written(variant(seed), tmp_path / f"{seed}.onnx") for seed in range(11)]
    added = [store.add(path, "m") for path in paths]
    assert [item.version for item in added] == [str(number) for number in range(1, 12)]
    again = store.add(paths[3], "m")
    assert (again.version, again.known, again.new_bytes) == ("4", True, 0)
    store.get("m", tmp_path / "latest.onnx")
    assert (tmp_path / "latest.onnx").read_bytes() == paths[10].read_bytes()
    assert store.add(paths[0], "m", "1").known
    with pytest.raises(StoreError, match="another model m@1"):
        store.add(paths[1], "m@1")
    with pytest.raises(StoreError, match="no version '99' of 'm'; it has 7, 8, 9, 10, 11"):
        store.get("m@99", tmp_path / "x.onnx")
    with pytest.raises(StoreError, match="no model 'n'; it has m"):
        store.get("n", tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="11 versions"):
        store.remove("m")
    assert store.remove("m@11") == ["m@11"]
    with pytest.raises(StoreError, match="no model 'm@11'"):
        store.remove("m@11")
    assert sorted(["10", "9", "1.10", "1.9", "rc"], key=version_key) == [
        "1.9",
        "1.10",
        "9",
        "10",
        "rc",
    ]


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", "a\\b", ".hidden", "a\0", "con", "nul.1", "ü", "a" * 101, "a.", "@1"],
)
def test_names_that_could_do_harm_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    path = written(variant(1), tmp_path / "m.onnx")
    before = sorted(os.walk(tmp_path))
    for call in (
        lambda: store.add(path, name),
        lambda: store.add(path, "m", name or "/"),
        lambda: store.get(name, tmp_path / "x.onnx"),
        lambda: store.remove(f"m@{name}"),
    ):
        with pytest.raises(UsageError):
            call()
    assert sorted(os.walk(tmp_path)) == before


def test_default_names() -> None:
    assert default_name("/a/b/my model (2).onnx") == "my_model_2_"
    assert default_name(".hidden.onnxz") == "hidden"
    with pytest.raises(UsageError):
        default_name("/a/….onnx")


def test_collection_removes_what_no_model_needs(store: Store, tmp_path: Path) -> None:
    for name, seeds in (("a", (1, 2)), ("b", (2, 3))):
        store.add(written(variant(*seeds), tmp_path / f"{name}.onnx"))
    assert store.collect().objects == 0
    store.remove("a")
    (tmp_path / "store" / "tmp" / "left").write_bytes(b"x" * 1000)
    (tmp_path / "store" / "models" / ".m@1.json.abc.tmp").write_bytes(b"x")
    before = disk_bytes(tmp_path / "store")
    done = store.collect()
    assert (done.objects, done.leftovers) == (2, 2)  # a tensor and a graph
    assert disk_bytes(tmp_path / "store") == before - done.freed_bytes
    store.get("b", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    result = store.check()
    assert result.clean
    assert result.unused == 0


def test_a_second_copy_of_an_object_is_harmless(store: Store, tmp_path: Path) -> None:
    """Two adds at once with different profiles may write the same content under two endings."""
    path = written(variant(1), tmp_path / "m.onnx")
    store.add(path)
    other = Store(tmp_path / "other")
    other.add(path, profile="stdlib")
    tensor = next(item for item in objects(tmp_path / "other") if item.suffix != ".graph")
    own = next(item for item in objects(tmp_path / "store") if item.suffix != ".graph")
    own.with_suffix(".another").write_bytes(tensor.read_bytes())
    assert store.check().clean
    assert store.collect().objects == 1
    store.get("m", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_a_flipped_byte_is_found_wherever_it_is(store: Store, tmp_path: Path) -> None:
    store.add(written(variant(1, 2), tmp_path / "a.onnx"))
    store.add(written(variant(2, 3), tmp_path / "b.onnx"))
    rng = np.random.default_rng(0)
    needs = {name: set() for name in ("a@1", "b@1")}
    for path in [*objects(tmp_path / "store"), *sorted((tmp_path / "store/models").iterdir())]:
        data = path.read_bytes()
        for position in rng.integers(0, len(data), 8):
            bad = bytearray(data)
            bad[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            result = store.check()
            where = str(path.relative_to(tmp_path / "store"))
            assert list(result.damaged) == [where]
            assert result.models
            for model in result.models:
                needs[model].add(where)
                with pytest.raises((PackError, StoreError)):
                    store.get(model, tmp_path / "back.onnx")
            assert not (tmp_path / "back.onnx").exists()
        path.write_bytes(data)
    assert store.check().clean
    assert len(needs["a@1"] & needs["b@1"]) == 1  # the tensor that both hold
    assert len(needs["a@1"]) == len(needs["b@1"]) == 4  # another, the graph, the record


def test_a_damaged_store_can_be_mended(store: Store, tmp_path: Path) -> None:
    path = written(variant(1, 2), tmp_path / "a.onnx")
    store.add(path)
    victim = objects(tmp_path / "store")[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    assert not store.check(remove_damaged=True).clean
    missing = store.check()
    assert (missing.missing, list(missing.models)) == ([victim.stem], ["a@1"])
    with pytest.raises(StoreError, match=f"{victim.stem} is missing"):
        store.get("a", tmp_path / "back.onnx")
    assert store.add(path).known
    assert store.check().clean


def test_nothing_is_collected_while_a_record_cannot_be_read(store: Store, tmp_path: Path) -> None:
    store.add(written(variant(1), tmp_path / "a.onnx"))
    record = tmp_path / "store" / "models" / "a@1.json"
    text = record.read_text()
    record.write_text(text[:-20])
    before = objects(tmp_path / "store")
    with pytest.raises(StoreError, match="damaged"):
        store.collect()
    assert objects(tmp_path / "store") == before
    record.write_text(json.dumps({**json.loads(text), "format": 2}))
    with pytest.raises(StoreError, match="newer version"):
        store.models()
    record.rename(record.with_name("b@1.json"))
    (tmp_path / "store" / "models" / "b@1.json").write_text(text)
    with pytest.raises(StoreError, match="it was moved"):
        store.get("b", tmp_path / "back.onnx")


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="not empty"):
        Store(tmp_path / "full")
    with pytest.raises(StoreError, match="is not a store"):
        Store(tmp_path / "missing", create=False)
    with pytest.raises(StoreError, match="store"):
        Store(tmp_path / "full" / "file")
    Store(tmp_path / "new")
    (tmp_path / "new" / "onnxslim-store.json").write_text('{"format": 2}')
    with pytest.raises(StoreError, match="format that this version cannot read"):
        Store(tmp_path / "new")


def test_what_is_no_model_leaves_no_trace(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"hello\n" * 300)
    for name in ("text.onnx", "missing.onnx", "."):
        with pytest.raises((PackError, UsageError)):
            store.add(tmp_path / name, "m")
    assert store.models().models == ()
    assert disk_bytes(tmp_path / "store") < 100


def test_a_collection_waits_for_those_who_add(store: Store, tmp_path: Path) -> None:
    done = threading.Event()

    def collect() -> None:
        Store(tmp_path / "store").collect()
        done.set()

    worker = threading.Thread(target=collect)

    def progress(stage: str, finished: int, total: int) -> None:
        if stage == "storing" and not worker.ident:
            worker.start()
            assert not done.wait(0.2)  # written objects are not needed by any record yet

    store.add(written(variant(1, 2, 3), tmp_path / "a.onnx"), progress=progress, threads=1)
    worker.join(20)
    assert done.is_set()
    assert store.check().clean
    store.get("a", tmp_path / "back.onnx")


_ADDER = """
import sys
from onnxslim import Store
store = Store(sys.argv[1])
for path in sys.argv[2:]:
    added = store.add(path, "m", threads=1)
    print(added.version, path, flush=True)
    store.collect()
"""


def test_many_processes_at_once(tmp_path: Path) -> None:
    paths = [written(variant(n, n + 1, n + 2), tmp_path / f"{n}.onnx") for n in range(9)]
    run = [sys.executable, "-c", _ADDER, str(tmp_path / "store")]
    workers = [
        subprocess.Popen([*run, *map(str, paths[n::3])], stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    lines = [line.split() for worker in workers for line in worker.communicate()[0].splitlines()]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(int(version) for version, _ in lines) == list(range(1, 10))
    store = Store(tmp_path / "store")
    assert store.check().clean
    assert len(objects(tmp_path / "store")) == 11 + 9  # distinct tensors, and graphs
    for version, path in lines:
        store.get(f"m@{version}", tmp_path / "back.onnx")
        assert (tmp_path / "back.onnx").read_bytes() == Path(path).read_bytes()
