"""docs/training-options.md lists every option, as its script writes it."""

import pathlib
import runpy

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_of_options_is_what_its_script_writes():
    page = runpy.run_path(str(ROOT / "benchmarks" / "training_options.py"))["page"]()
    assert (ROOT / "docs" / "training-options.md").read_text() == page
