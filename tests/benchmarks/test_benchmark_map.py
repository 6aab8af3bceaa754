"""Test that `benchmarks/README.md` maps each published table to its script."""

import re

import pytest
from paths import ROOT

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

MAP = (ROOT / "benchmarks" / "README.md").read_text()
ROWS = [line for line in MAP.splitlines() if line.startswith("| ")]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PUBLISHED = sorted(p.name for p in (ROOT / "benchmarks/published").iterdir())
MARKED = re.findall(r"<!-- (\w+-table) -->", README)
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def scripts_of(text):
    """Return the paths of the scripts that a text names."""
    names = re.findall(r"(?:benchmarks|examples|tests)/[\w/]+\.py", text)
    return [ROOT / name for name in names]


def row_of(published):
    """Return the only row whose first cell contains a text."""
    (row,) = [row for row in ROWS if published in row.split(" | ")[0]]
    return row


def anchor(heading):
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def without_code(text):
    """Return a Markdown text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def has_figures(table):
    """Return whether half of a table's rows have a cell with a decimal."""
    rows = table.splitlines()[2:]
    decimal = re.compile(r"\| *[-+]?\d+\.\d")
    return sum(bool(decimal.search(row)) for row in rows) * 2 >= len(rows)


def sections_with_figures(text):
    """Return the headings of the sections that have a table of figures."""
    found = []
    text = without_code(text)
    for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
        if any(map(has_figures, tables)):
            found.append(section.splitlines()[0].lstrip("# "))
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_has_its_script(name):
    scripts = scripts_of(row_of(f"](published/{name})"))
    assert scripts and all(path.is_file() for path in scripts)


@pytest.mark.parametrize("name", MARKED)
def test_a_marked_table_has_the_script_that_writes_it(name):
    scripts = scripts_of(row_of(f"`{name}`"))
    assert any(f'"{name}"' in path.read_text() for path in scripts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_section_with_figures_has_its_script(page):
    where = f"](../{page.relative_to(ROOT)}#"
    for heading in sections_with_figures(page.read_text()):
        scripts = scripts_of(row_of(f"{where}{anchor(heading)})"))
        assert scripts and all(path.is_file() for path in scripts)


def test_the_figures_of_the_readme_are_found():
    """A table of figures is distinguished from a table of text."""
    found = sections_with_figures(README)
    assert {"Try it", "Ensembles", "Speed"} <= set(found)
    assert "Which form for my problem" not in found


def test_every_link_has_its_target():
    headings = re.findall(r"^#+ (.*)$", without_code(README), re.MULTILINE)
    anchors = {anchor(heading) for heading in headings}
    for target in re.findall(r"\]\((.*?)\)", MAP):
        path, _, section = target.partition("#")
        assert (ROOT / "benchmarks" / path).exists(), target
        assert not section or section in anchors, target


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_is_named(script):
    below = script.relative_to("benchmarks")
    assert f"`{script}" in MAP or f"({below})" in MAP or f" {script}" in MAP


def test_the_parts_of_the_suite_are_listed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.run_suite import PARTS

    for part, script in PARTS.items():
        assert (ROOT / "benchmarks" / script).is_file()
        assert f"({script})" in row_of(f"`{part}`")
