"""External data of a model: which file, which bytes, and whether they may be read at all."""

from __future__ import annotations

import os
from collections.abc import Mapping

import onnx

from onnxslim.errors import ModelLoadError
from onnxslim.io.source import FileSource, Source
from onnxslim.io.wire import Range


class DataFiles:
    """Opens the data files of one model, each once.

    Only files within the model's folder are opened. The folder is the real one: a model that is
    itself a symbolic link (as in model caches) has its data beside the link's target.
    """

    def __init__(self, model_path: str | None, label: str) -> None:
        """``model_path`` is the real path of the model; None if it did not come from a path."""
        self._folder = None if model_path is None else os.path.dirname(model_path)
        self._label = label
        self._open: dict[str, Source] = {}  # by location, as written in the model
        self._by_path: dict[str, FileSource] = {}

    def locate(self, proto: onnx.TensorProto, expected: int) -> Range:
        """Return where the data of an external tensor lies; ``expected`` is its size in bytes.

        Raises:
            ModelLoadError: a location that is unsafe or missing, or a file that is too short.
        """
        name = proto.name or "(unnamed)"
        entries = {entry.key: entry.value for entry in proto.external_data}
        source = self._source(entries.get("location", ""), name)
        offset = _number(entries, "offset", name)
        length = _number(entries, "length", name) or expected
        if length != expected:
            raise ModelLoadError(
                f"tensor '{name}' names {length} bytes of {source.label}, but its shape and type "
                f"need {expected}"
            )
        if offset + length > source.size:
            raise ModelLoadError(
                f"tensor '{name}' needs bytes {offset} to {offset + length} of {source.label}, "
                f"which has only {source.size}; the data file is cut short or belongs to another "
                "model"
            )
        return Range(source, offset, length)

    def _source(self, location: str, name: str) -> Source:
        if location not in self._open:
            path = self._checked(location, name)
            if not os.path.exists(path):
                raise ModelLoadError(
                    f"tensor '{name}': data file '{location}' of {self._label} is missing; put it "
                    "beside the model"
                )
            if path not in self._by_path:
                self._by_path[path] = FileSource.open(path, f"data file '{location}'")
            self._open[location] = self._by_path[path]
        return self._open[location]

    def _checked(self, location: str, name: str) -> str:
        """Return the real path of a location that is safe to open."""
        where = f"tensor '{name}': external location '{location}'"
        if self._folder is None:
            raise ModelLoadError(
                f"{where} of {self._label} cannot be found because the model did not come from a "
                "path; give the path of the model instead"
            )
        if not location or "\0" in location:
            raise ModelLoadError(f"{where} is not a file name")
        if os.path.isabs(location):
            raise ModelLoadError(f"{where} is absolute; only files in the model's folder are read")
        joined = os.path.join(self._folder, location)
        path = os.path.realpath(joined)
        for candidate, how in ((os.path.normpath(joined), "leaves"), (path, "is a link out of")):
            if os.path.commonpath([candidate, self._folder]) != self._folder:
                raise ModelLoadError(f"{where} {how} the model's folder; it is not read")
        return path


class GivenFiles(DataFiles):
    """Data files that are at hand already, by their names: none is looked for on the disk."""

    def __init__(self, files: Mapping[str, Source], label: str) -> None:
        """``files`` have plain names with ``/`` between parts; ``label`` names the model."""
        super().__init__(None, label)
        self._given = files

    def _source(self, location: str, name: str) -> Source:
        plain = os.path.normpath(location).replace(os.sep, "/") if location else ""
        if plain not in self._given:
            raise ModelLoadError(
                f"tensor '{name}': data file '{location}' is not in {self._label}; it was packed "
                "from an incomplete model"
            )
        return self._given[plain]


def _number(entries: dict[str, str], key: str, name: str) -> int:
    text = entries.get(key, "0")
    if not (text.isascii() and text.isdecimal()):
        raise ModelLoadError(f"tensor '{name}': external {key} '{text}' is not a number")
    return int(text)
