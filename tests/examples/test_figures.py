"""Test that the pictures in the README are those of their script."""

import re

import pytest
from paths import ROOT

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

FOLDER = ROOT / "examples" / "figures"
PUBLISHED = {path.name for path in FOLDER.glob("*.svg")}


@pytest.fixture
def draw(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(FOLDER)
    import draw

    return draw


def test_the_script_draws_the_published_pictures(draw, tmp_path):
    draw.main(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(drawn) == PUBLISHED
    assert len(drawn) == len(draw.FORMS)
    for name, text in drawn.items():
        assert "<dc:date>" not in text
        assert 'width="270pt" height="150pt"' in text, name  # 360 x 200 pixels


def test_a_picture_is_the_same_each_time(draw, tmp_path):
    form = draw.FORMS[0]
    for name in ("first.svg", "second.svg"):
        form().save(tmp_path / name)
    first, second = (p.read_bytes() for p in tmp_path.iterdir())
    assert first == second


def test_the_readme_shows_each_picture_with_a_description():
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"!\[(.*?)\]\(examples/figures/(.*?\.svg)\)", readme)
    assert sorted(name for _, name in shown) == sorted(PUBLISHED)
    assert all(len(words) > 20 for words, _ in shown)
