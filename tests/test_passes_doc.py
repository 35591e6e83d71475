"""docs/passes.md is what the docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onnxslim import passes
from onnxslim.report.passes_page import passes_page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "passes.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == passes_page(), "run: python -m onnxslim passes --markdown > docs/passes.md"


def test_every_pass_has_a_section_with_code_conditions_and_source() -> None:
    sections = passes_page().split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == sorted(passes.REGISTRY)
    for section in sections:
        for word in ("**Before", "**After", "**Holds only if", "**Exactness:**", "**Source:**"):
            assert word in section, (section.split("\n")[0], word)
        assert section.count("```") % 2 == 0
        assert "::" not in section.split("```")[0]


def test_the_command_prints_the_page() -> None:
    command = [sys.executable, "-m", "onnxslim", "passes", "--markdown"]
    assert subprocess.run(command, capture_output=True, check=True).stdout.decode() == passes_page()
