"""The report as a page: whole, self-contained, and safe with any name."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import onnx
import onnx.parser

import onnxslim
from onnxslim.report.page import report_page

MODEL = Path(__file__).resolve().parents[2] / "models" / "digits_resnet_pruned.onnx"
_VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Text, and every tag closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_the_page_says_what_the_report_says() -> None:
    report = onnxslim.optimize(MODEL, explain=True).report
    page = Page(report_page(report))
    for word in ("outputs passed", "fuse-conv-batchnorm", "BatchNormalization", "logits"):
        assert word in page.text
    assert f"Left alone: {len(report.refusals)} places" in page.text
    assert f"Rewrites: {len(report.rewrites)} places" in page.text
    assert str(report.before.nodes) in page.text
    assert str(report.after.nodes) in page.text
    for entry in report.explanations:
        assert entry.site in page.text
    assert report_page(report) == report_page(report)


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = Page(report_page(onnxslim.optimize(MODEL).report))
    assert not {"script", "link", "img", "iframe"} & page.tags
    assert not {"src", "href", "srcset"} & page.attributes
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_names_are_text_whatever_they_hold() -> None:
    name = "<script>alert('&')</script>"
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]>\n'
        "g (float[2] x) => (float[2] y) { a = Identity (x)\n y = Relu (a) }"
    )
    proto.graph.output[0].name = proto.graph.node[1].output[0] = name
    page = Page(report_page(onnxslim.optimize(proto).report))
    assert name in page.text
    assert "script" not in page.tags


def test_long_lists_are_cut_and_say_so() -> None:
    nodes = "\n".join(f"a{i} = Identity (x)\n b{i} = Relu (a{i})" for i in range(220))
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]>\ng (float[2] x) => (float[2] b0) {{ {nodes} }}'
    )
    passes = ["eliminate-identity"]
    report = onnxslim.optimize(proto, passes=passes, validate=False).report
    page = Page(report_page(report))
    assert "eliminate-identity (220)" in page.text
    assert "The first 200 of 220" in page.text


def test_the_commands_write_it(tmp_path: Path) -> None:
    for command in ([], ["prune", "--exact"]):
        words = [*command[:1], str(MODEL), "out.onnx", *command[1:], "--html", "r.html", "-q"]
        subprocess.run([sys.executable, "-m", "onnxslim", *words], cwd=tmp_path, check=True)
        assert "outputs passed" in Page((tmp_path / "r.html").read_text(encoding="utf-8")).text
        (tmp_path / "r.html").unlink()
    words = [str(MODEL), "--html", "no/such/folder.html", "-q"]
    result = subprocess.run(
        [sys.executable, "-m", "onnxslim", *words], cwd=tmp_path, capture_output=True
    )
    assert result.returncode == 1
    assert b"cannot write the report" in result.stderr
