"""What the operations of a store return."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Added:
    """A model that was added.

    Attributes:
        name: its name.
        version: its version.
        raw_bytes: of the model with its data files.
        new_bytes: by which the store grew.
        shared_bytes: raw bytes of tensors that the store held already.
        known: the store held the same files under this version already; nothing was written.
    """

    name: str
    version: str
    raw_bytes: int
    new_bytes: int
    shared_bytes: int
    known: bool = False


@dataclass(frozen=True)
class StoredModel:
    """A model in a store.

    Attributes:
        name: its name.
        version: its version.
        raw_bytes: of the model with its data files.
        stored_bytes: of all objects it needs, and its record.
        own_bytes: those of them that no other model needs.
        files: names of its data files.
    """

    name: str
    version: str
    raw_bytes: int
    stored_bytes: int
    own_bytes: int
    files: tuple[str, ...] = ()

    @property
    def shared(self) -> float:
        """Share of its stored bytes that other models need too."""
        return 1 - self.own_bytes / self.stored_bytes if self.stored_bytes else 0.0


@dataclass(frozen=True)
class Listing:
    """All models of a store; ``stored_bytes`` are those of all objects and records on disk."""

    models: tuple[StoredModel, ...]
    raw_bytes: int
    stored_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        models = [{**asdict(model), "shared": round(model.shared, 4)} for model in self.models]
        return {**asdict(self), "models": models}


@dataclass(frozen=True)
class Collected:
    """What a collection removed: objects no model needs, and leftovers of killed processes."""

    objects: int
    leftovers: int
    freed_bytes: int


@dataclass
class Check:
    """What is wrong in a store.

    Attributes:
        objects: how many objects were decoded and compared with their hashes.
        damaged: reason, by the path of an object or record within the store.
        missing: hashes of objects that a model needs and the store lacks.
        models: models that cannot be given back, each with the damaged or missing things.
        unused: objects that no model needs (harmless; a collection removes them).
    """

    objects: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    models: dict[str, list[str]] = field(default_factory=dict)
    unused: int = 0

    @property
    def clean(self) -> bool:
        """Whether every listed model can be given back."""
        return not self.damaged and not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"clean": self.clean, **asdict(self)}
