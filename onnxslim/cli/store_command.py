"""``onnxslim store``: many versions of models on one disk."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, progress_bar, write_json
from onnxslim.errors import StoreError

if TYPE_CHECKING:
    from onnxslim.store import Store

store = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder of the store.")]


@store.callback()
def main() -> None:
    """Keep many versions and variants of models on one disk, every distinct tensor once.

    onnxslim store add models/ resnet.onnx --as resnet@1.0

    onnxslim store get models/ resnet@1.0 resnet.onnx
    """


def _open(folder: str, *, create: bool = False) -> Store:
    from onnxslim.store import Store

    return Store(folder, create=create)


def _say(text: str, quiet: bool, target: str | None = None) -> None:
    console_for(target, quiet).print(text, highlight=False, soft_wrap=True)


@store.command()
def add(
    folder: Folder,
    source: Annotated[str, typer.Argument(metavar="IN", help="Model, or packed model.")],
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME[@VERSION]",
            help="Default: the name of the file, and the next number.",
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="default, max (smallest) or stdlib (zlib only).")
    ] = "default",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="OLD", help="What a packed IN holds differences to."),
    ] = None,
    json_file: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Add a model with its data files; a missing folder becomes a store."""
    from onnxslim.report.table import size

    with progress_bar(quiet) as progress:
        added = _open(folder, create=True).add(
            source, name, profile=profile, base=base, progress=progress
        )
    write_json(json_file, vars(added))
    where = f"{added.name}@{added.version}"
    if added.known:
        text = f"{where} holds these files already ({size(added.raw_bytes)})"
    else:
        text = f"{where}: {size(added.raw_bytes)} take {size(added.new_bytes)} more"
    _say(f"{text}, {size(added.shared_bytes)} were there", quiet or json_file == "-")


@store.command()
def get(
    folder: Folder,
    reference: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="Default: the latest.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="Model file (.onnxz: packed); - is stdout.")
    ],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Give a model back, byte for byte, with its data files beside it."""
    with progress_bar(quiet) as progress:
        out: Any = sys.stdout.buffer if target == "-" else target
        paths = _open(folder).get(reference, out, progress=progress)
    for path in paths:
        _say(f"wrote {path}", quiet)


@store.command("ls")
def list_models(
    folder: Folder,
    json_file: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """List the models: bytes as files, bytes stored, and how much of that is shared."""
    from rich.table import Table

    from onnxslim.report.table import size

    listing = _open(folder).models()
    write_json(json_file, listing.to_dict())
    if json_file == "-":
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("model", "version", "raw", "stored", "own", "shared"):
        table.add_column(title, justify="left" if title in ("model", "version") else "right")
    for model in listing.models:
        sizes = map(size, (model.raw_bytes, model.stored_bytes, model.own_bytes))
        table.add_row(model.name, model.version, *sizes, f"{model.shared:.0%}")
    share = listing.stored_bytes / listing.raw_bytes if listing.raw_bytes else 0
    console = console_for(None, quiet=False)
    console.print(table)
    console.print(
        f"{len(listing.models)} models, {size(listing.raw_bytes)} in {size(listing.stored_bytes)} "
        f"on disk ({share:.1%})",
        highlight=False,
    )


@store.command()
def rm(
    folder: Folder,
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="What to remove.")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Take a model off the list; gc frees what only it needed."""
    for removed in _open(folder).remove(reference):
        _say(f"removed {removed}; gc frees its space", quiet)


@store.command()
def gc(
    folder: Folder,
    json_file: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Remove tensors that no model needs, and leftovers of killed processes."""
    from onnxslim.report.table import size

    done = _open(folder).collect()
    write_json(json_file, vars(done))
    _say(
        f"removed {done.objects} objects and {done.leftovers} leftovers, {size(done.freed_bytes)}",
        quiet or json_file == "-",
    )


@store.command()
def fsck(
    folder: Folder,
    remove_damaged: Annotated[
        bool,
        typer.Option(
            "--remove-damaged",
            help="Remove damaged objects; adding a model that holds them mends the store.",
        ),
    ] = False,
    json_file: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Decode everything, compare it with its hashes, and name the models that are hit.

    Ends with exit code 1 if anything is damaged or missing.
    """
    with progress_bar(quiet) as progress:
        result = _open(folder).check(remove_damaged=remove_damaged, progress=progress)
    write_json(json_file, result.to_dict())
    quiet = quiet or json_file == "-"
    for path, reason in result.damaged.items():
        _say(f"damaged: {path}: {reason}", quiet)
    for sha in result.missing:
        _say(f"missing: object {sha}", quiet)
    for model, faults in result.models.items():
        _say(f"cannot be given back: {model} ({len(faults)} faults)", quiet)
    if not result.clean:
        hit = ", ".join(list(result.models)[:5]) or "no model"
        raise StoreError(
            f"store '{folder}': {len(result.damaged)} files are damaged, {len(result.missing)} "
            f"missing; models hit: {hit}"
        )
    _say(f"{result.objects} objects are sound, {result.unused} of them unused", quiet)
