"""The interface of the package-index project of the same name, on top of this product.

`slim` takes its keywords and the command line its flags; both mean what its users mean by them.
What differs, and why, is in docs/compatibility.md.
"""

from onnxslim.compat.call import Changes, run, slim
from onnxslim.compat.comparison import dump_nodes

__all__ = ["Changes", "dump_nodes", "run", "slim"]
