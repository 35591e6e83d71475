"""The table and the plot of static int8."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from onnxslim.report.quantized import figures, ranking_plot

RANKING = [
    {"nodes": ["a<b", "c"], "sqnr_db": 12.5},
    {"nodes": ["d" * 60], "sqnr_db": 50.0},
    {"nodes": ["e"], "sqnr_db": 150.0},
]


def test_bars_are_as_long_as_the_ratio_and_end_at_100_db() -> None:
    root = ET.fromstring(ranking_plot(RANKING))
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(one.get("width", "")) for one in root.iter(f"{space}rect")]
    assert widths == [40.0, 160.0, 320.0]
    texts = [one.text or "" for one in root.iter(f"{space}text")]
    assert texts[0] == "a<b +1"
    assert texts[2].startswith("…d")
    assert texts[1::2] == ["12.5 dB", "50.0 dB", "150.0 dB"]


def test_no_ranking_no_plot() -> None:
    assert ranking_plot([]) == ""


def test_rows_of_a_result_without_labels_and_latency() -> None:
    found = {
        "status": "quantized", "form": "preset", "before": None, "after": None, "latency": [],
        "fake_real_gap": None, "int8_kernel_share": 0.5, "conversions_left": 3,
    }  # fmt: skip
    rows = figures(found)
    assert rows == [
        ("status", "", "quantized", "preset"),
        ("products in int8", "", "50%", "3 conversions stay"),
    ]


def test_rows_of_a_judged_result() -> None:
    judged = {"metric": "top1", "drop": 0.5, "samples": 200, "top1_flips": 3}
    times = {"p50_ms": 1.0, "p90_ms": 2.0}
    found = {
        "status": "quantized", "form": "preset", "int8_kernel_share": None,
        "before": {**judged, "value": 99.0},
        "after": {
            **judged, "value": 98.5, "drop_interval_95": [0.0, 1.0],
            "outputs": [{"name": "y", "sqnr_db": 31.25}],
        },
        "latency": [{"batch": 1, "speedup": 2.0, "before": times, "after": times}],
        "fake_real_gap": {"gap_db": 0.2, "described_db": 31.0, "real_db": 30.8},
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in figures(found)}
    assert rows["top1"] == ("99.00", "98.50", "drop 0.50, 95 % within [0.00, 1.00]; 200 samples")
    assert rows["top-1 flips"][1] == "3"
    assert rows["SQNR y"][1] == "31.2 dB"
    assert rows["p50 / p90, batch 1"] == ("1 / 2 ms", "1 / 2 ms", "2.00x")
    assert rows["kernel gap"][1] == "0.2 dB"
