"""Many versions and variants of models on one disk, every distinct tensor stored once, packed.

``docs/store.md`` describes the folder and what may happen to it at the same time.
"""

from onnxslim.store.report import Added, Check, Collected, Listing, StoredModel
from onnxslim.store.store import Store

__all__ = ["Added", "Check", "Collected", "Listing", "Store", "StoredModel"]
