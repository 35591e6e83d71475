"""``python -m onnxslim`` is the same as ``onnxslim``."""

from onnxslim.cli.app import main

if __name__ == "__main__":
    main()
