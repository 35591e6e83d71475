"""Slims the networks that were pruned in training, measures each step, writes table and plot.

Takes the folder that `prune_training_torch.py` and `prune_training_keras.py` wrote, runs
`onnxslim` on every file (float, and with static int8), packs everything, and measures bytes,
exact zeros, MACs, latency and accuracy on the held-out digits. Nothing in the tables is typed by
hand: they replace what stands between the two markers of the document.

    pip install . matplotlib
    python models/measure_pruned.py --doc docs/pruning.md --plot docs/pruning.svg
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort
from pruned_rows import ALIGNED, BATCH, DENSE, FILTER_MODES, MODES, STEPS, Row, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_PERCENT = 75  # the amount whose every step is in the first table
TICKS = (3, 10, 30, 100, 300, 1000)  # kB, or thousand MACs
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def table(titles: Sequence[str], cells: Iterable[Sequence[str]], text: int) -> list[str]:
    """A Markdown table whose first `text` columns are words, the others numbers."""
    rule = ["---"] * text + ["--:"] * (len(titles) - text)
    return [f"| {' | '.join(row)} |" for row in (titles, rule, *cells)]


def steps_table(rows: Sequence[Row]) -> list[str]:
    """Every step of the dense networks and of those pruned by `SHOWN_PERCENT`."""
    titles = ("Network", "Step", "bytes", "packed", "zeros", "MACs", "µs min", "µs median", "top-1")
    cells = []
    for row in rows:
        if row.step not in STEPS or (row.mode != DENSE and row.percent != SHOWN_PERCENT):
            continue
        name = f"{row.framework}, {row.mode}" if row.step == STEPS[0] else ""
        zeros = "" if row.zeros is None else f"{100 * row.zeros:.1f} %"
        times = tuple(f"{value:.2f}" for value in row.latency)
        sizes = (f"{row.size:,}", f"{row.packed:,}", zeros, f"{row.macs:,}")
        cells.append((name, row.step, *sizes, *times, f"{100 * row.accuracy:.2f} %"))
    return table(titles, cells, 2)


def amounts_table(rows: Sequence[Row]) -> list[str]:
    """One line per trained network: what is left of it after slimming and packing."""
    titles = ("Network", "zeroed", "packed, trained", "packed, slim", "packed, int8")
    titles += ("MACs, slim", "µs min, slim", "top-1", "top-1, int8")
    cells = []
    for first in (row for row in rows if row.step == STEPS[0]):
        key = (first.framework, first.mode, first.percent)
        same = [row for row in rows if (row.framework, row.mode, row.percent) == key]
        trained, floating, int8 = (next(r for r in same if r.step == step) for step in STEPS)
        sizes = tuple(f"{row.packed:,}" for row in (trained, floating, int8))
        cost = (f"{floating.macs:,}", f"{floating.latency[0]:.2f}")
        shares = tuple(f"{100 * row.accuracy:.2f} %" for row in (floating, int8))
        cells.append((f"{key[0]}, {key[1]}", f"{key[2]} %", *sizes, *cost, *shares))
    return table(titles, cells, 1)


def align_table(rows: Sequence[Row]) -> list[str]:
    """What holding back zero channels does to work and latency, per network with zero filters."""
    titles = ("Network", "zeroed", "MACs: 1", "8", "auto", "µs min: trained", "1", "8", "auto")
    cells = []
    for first in (row for row in rows if row.step == STEPS[0] and row.mode in FILTER_MODES):
        key = (first.framework, first.mode, first.percent)
        same = {r.step: r for r in rows if (r.framework, r.mode, r.percent) == key}
        ways = [same[step] for step in (*ALIGNED, "slim")]
        times = [f"{row.latency[0]:.2f}" for row in (first, *ways)]
        work = [f"{row.macs:,}" for row in ways]
        cells.append((f"{key[0]}, {key[1]}", f"{key[2]} %", *work, *times))
    return table(titles, cells, 1)


def write_tables(rows: Sequence[Row], document: Path, rounds: int) -> None:
    """Replace what stands between the markers of `document`."""
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{document}: needs one line {BEGIN} and one line {END}")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    about = (
        f"Every step, {SHOWN_PERCENT} % of each layer zeroed. Latency is per image, in batches of "
        f"{BATCH}, one thread,\n{rounds} runs of every file in turn, onnxruntime {ort.__version__}."
    )
    parts = [BEGIN, about, "", *steps_table(rows), "", "All amounts:", "", *amounts_table(rows)]
    parts += ["", "Networks with zero filters, by `--align`:", "", *align_table(rows)]
    document.write_text(head + "\n".join([*parts, END]) + tail, encoding="utf-8")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over packed size and over MACs, one line per mode, a row of axes per framework."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "onnxslim", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9.5, 7.5), sharey=True, layout="constrained")
    for (left, right), framework in zip(axes, ("PyTorch", "Keras"), strict=True):
        mine = [row for row in rows if row.framework == framework]
        _draw_lines(left, mine, lambda row: row.packed / 1000, ("slim", "int8"))
        _draw_lines(right, mine, lambda row: row.macs / 1000, ("slim",))
        left.set(title=f"{framework}: size", xlabel="packed file, kB", ylabel="top-1, %")
        right.set(title=f"{framework}: work", xlabel="thousand MACs per image")
        right.legend(*left.get_legend_handles_labels(), loc="lower center", fontsize=8)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def _draw_lines(
    axes: "Axes", rows: Sequence[Row], x_of: Callable[[Row], float], steps: Sequence[str]
) -> None:
    """One line per mode and step; amounts are named on one line, where there is room."""
    modes = [mode for mode in MODES[1:] if any(row.mode == mode for row in rows)]
    looks = list(zip("osD", ("C0", "C1", "C2"), strict=True))[-len(modes) :]
    for mode, (marker, color) in zip(modes, looks, strict=True):
        for step in steps:
            points = [r for r in rows if r.mode in (DENSE, mode) and r.step == step]
            xs, ys = [x_of(r) for r in points], [100 * r.accuracy for r in points]
            style = {"slim": ("-", "float32", "full"), "int8": ("--", "int8", "none")}[step]
            look = {"color": color, "fillstyle": style[2], "linewidth": 1.3, "markersize": 5}
            axes.plot(xs, ys, style[0] + marker, label=f"{mode}, {style[1]}", **look)
            if mode == modes[-1] and step == "slim":
                _name_amounts(axes, [r.percent for r in points], xs, ys, color)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:,}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    values = [x_of(row) for row in rows if row.step in steps]
    axes.set_xlim(min(values) / 1.4, max(values) * 1.4)
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)


def _name_amounts(
    axes: "Axes", percents: Sequence[int], xs: Sequence[float], ys: Sequence[float], color: str
) -> None:
    style = {"textcoords": "offset points", "fontsize": 7, "color": color, "ha": "center"}
    for percent, x, y in zip(percents, xs, ys, strict=True):
        axes.annotate(f"{percent} %" if percent else DENSE, (x, y), (0, -11), **style)


def main() -> None:
    """Measure, write the tables, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/pruned"))
    parser.add_argument("--doc", type=Path, help="document with the two markers")
    parser.add_argument("--plot", type=Path, help="SVG to write; needs matplotlib")
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    rows = measure(given.folder, given.rounds)
    print("\n".join([*steps_table(rows), "", *amounts_table(rows), "", *align_table(rows)]))
    if given.doc is not None:
        write_tables(rows, given.doc, given.rounds)
    if given.plot is not None:
        draw(rows, given.plot)


if __name__ == "__main__":
    main()
