"""Opens a model whose weights are in memory, beside a message that refers to them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from onnxslim.errors import RuntimeRefusedError, UsageError
from onnxslim.runtime.session import one_line_errors
from onnxslim.runtime.specs import Array

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)


def open_file(
    path: str | os.PathLike[str],
    settings: Mapping[str, Any],
    config: Mapping[str, str],
    providers: Sequence[Any],
) -> Any:
    """Open a model file in onnxruntime; the parameters are those of `open_detached`.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
        UsageError: an option that onnxruntime does not have.
    """
    return _open(os.fspath(path), _options(settings, config), providers, os.fspath(path))


def open_detached(
    data: bytes,
    weights: Mapping[str, Array],
    label: str,
    settings: Mapping[str, Any],
    config: Mapping[str, str],
    providers: Sequence[Any],
) -> Any:
    """Open a model in onnxruntime; nothing is written to disk.

    onnxruntime copies the weights while it opens the model, so they are needed no longer than that.

    Args:
        data: the serialized model.
        weights: bytes (as uint8) for each location of external data in it.
        label: names the model in messages.
        settings: attributes of ``SessionOptions`` and their values.
        config: session configuration entries by key.
        providers: execution providers, as ``InferenceSession`` takes them.

    Returns:
        An ``onnxruntime.InferenceSession``. Its providers cannot be changed afterwards.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
        UsageError: an option that onnxruntime does not have.
    """
    options = _options(settings, config)
    buffers = [weights[name] for name in weights]
    if buffers:
        # the options keep plain pointers: `buffers` must stay until the session is there, and
        # these options must not be used for another one
        options.add_external_initializers_from_files_in_memory(
            list(weights), buffers, [item.nbytes for item in buffers]
        )
    session = _open(data, options, providers, label)
    del buffers
    session.set_providers = _keep_providers
    session.disable_fallback()  # which would open the model again
    return session


def _keep_providers(*arguments: Any, **options: Any) -> NoReturn:
    raise RuntimeRefusedError(
        "a session from a packed model cannot be opened again with other providers; name them when "
        "it is opened: onnxslim.session(path, providers=[...])"
    )


def _options(settings: Mapping[str, Any], config: Mapping[str, str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        if name.startswith("_") or not hasattr(options, name) or callable(getattr(options, name)):
            raise UsageError(
                f"session: onnxruntime.SessionOptions has no option '{name}'; "
                "configuration entries are given as config={key: value}"
            )
        try:
            setattr(options, name, value)
        except (TypeError, AttributeError) as error:
            kind = type(value).__name__
            raise UsageError(f"session: option '{name}' takes no {kind} ({value!r})") from error
    for key, entry in config.items():
        options.add_session_config_entry(key, entry)
    return options


def _open(source: str | bytes, options: Any, providers: Sequence[Any], label: str) -> Any:
    import onnxruntime

    with one_line_errors(f"onnxruntime cannot open {label}"):
        return onnxruntime.InferenceSession(
            source, options, providers=list(providers), enable_fallback=0
        )
