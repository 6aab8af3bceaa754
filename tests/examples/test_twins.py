"""Test the examples that train twins, and their quick forms."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from backend import BACKEND
from paths import EXAMPLES

DATA = os.environ.get("KERAS_MOE_DATA_DIR")
needs_data = pytest.mark.skipif(not DATA, reason="KERAS_MOE_DATA_DIR not set")
once = pytest.mark.skipif(
    BACKEND != "torch",
    reason="test_models.py has these models on each backend; JAX takes minutes",
)


NOTHING = {"largest": 0.0, "tolerance": 0.0, "passed": True}
NO_DIFFERENCE = {"reloaded": NOTHING, "saved_model": NOTHING}


@pytest.fixture
def no_check(monkeypatch):
    """Skip saving and exporting, which the translation's test covers."""
    from shared import twins

    monkeypatch.setattr(twins, "check", lambda *_: dict(NO_DIFFERENCE))


def quick(example, folder):
    """Run an example's quick form in this process; return its only task."""
    from shared import twins
    from shared.options import Options

    module = importlib.import_module(example)
    data = pathlib.Path(DATA) if DATA else None
    options = Options(example, BACKEND, 1, True, folder, data)
    assert twins.run(options, (), module.make_tasks) == 0
    (task,) = json.loads((folder / "results.json").read_text())["tasks"]
    return task


@needs_data
@once
@pytest.mark.slow
def test_language_model(tmp_path, no_check):
    task = quick("language_model", tmp_path)
    for training in (*task["trainings"]["moe"], *task["trainings"]["dense"]):
        # Untrained, 65 characters and padding cost ln 66 = 4.19.
        assert 0 < training["loss"] < 4.19
    more = task["more"]
    assert task["differences"]["tokens without the cache"]["passed"]
    assert len(more["text"]) == more["tokens"] + len("ROMEO:\nWhat")
    assert list(more["cpu_milliseconds_at_position"]) == [
        *("0", "8", "16", "24", "31")
    ]


@needs_data
@once
@pytest.mark.slow
def test_tagger(tmp_path, no_check, monkeypatch):
    import tagger

    files = {"wikigold": tagger.FILES["wikigold"]}
    monkeypatch.setattr(tagger, "FILES", files)
    task = quick("tagger", tmp_path)
    assert task["data"] == "wikigold"
    for kind in ("moe", "dense"):
        (training,) = task["trainings"][kind]
        assert 0 <= training["F1"] <= 100
        assert (tmp_path / "wikigold" / "dense.keras").exists()


@once
@pytest.mark.slow
def test_translation_saves_and_exports(tmp_path):
    """The loaded and the exported model equal the trained model."""
    task = quick("translation", tmp_path)
    assert task["differences"]["reloaded"]["largest"] == 0
    assert task["differences"]["saved_model"]["largest"] <= 1e-4
    assert len(task["more"]["translations"]) == 10
    assert (tmp_path / task["data"] / "saved_model").is_dir()
    table = (tmp_path / "results.md").read_text().splitlines()
    assert len(table) == 3
    assert len({line.count("|") for line in table}) == 1


def test_missing_data_is_an_error_of_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "tagger.py", "--data", tmp_path / "none"]
        + ["--backend", BACKEND, "--output", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Name the folder that wnut17 is in by --data" in done.stderr


def test_windows_hold_each_target_once():
    import language_model

    ids = np.arange(1, 12)
    inputs, targets, weights = language_model.all_windows(ids, context=5)
    np.testing.assert_array_equal(inputs, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    np.testing.assert_array_equal(targets, inputs + 1)
    assert weights.shape == (2, 5) and weights.all()


def test_random_windows_stay_inside():
    import language_model

    ids = np.arange(1, 8)
    inputs, targets, _ = language_model.random_windows(ids, 200, 4, seed=0)
    # The first target is never 1 and the last may be 7, so starts are 0 to 2.
    assert set(inputs[:, 0]) == {1, 2, 3}
    np.testing.assert_array_equal(targets, inputs + 1)


def test_no_character_has_the_id_of_padding():
    from language_model import Characters, split

    characters = Characters("banana")
    ids = characters.encode("nab")
    np.testing.assert_array_equal(ids, [3, 1, 2])
    assert characters.size == 4
    assert characters.decode([*ids, 0]) == "nab"
    assert [len(part) for part in split(np.arange(20))] == [18, 2]


def test_io_tags_become_bio():
    from tagger import to_bio

    tags = ("I-PER", "I-PER", "O", "I-LOC", "I-ORG", "I-ORG", "O")
    assert to_bio(tags) == (
        *("B-PER", "I-PER", "O", "B-LOC", "B-ORG", "I-ORG", "O"),
    )


def test_sentences_end_at_blank_lines(tmp_path):
    from tagger import Sentence, read

    path = tmp_path / "x.conll"
    path.write_text("-DOCSTART- O\n\nAn\tO\nOslo\tB-loc\n\t\n\nhm\tO")
    assert read(path) == [
        Sentence(("An", "Oslo"), ("O", "B-loc")),
        Sentence(("hm",), ("O",)),
    ]


def test_a_word_that_occurs_once_has_the_id_of_its_class():
    from tagger import Encoder, Sentence

    tags = ("O", "B-loc", "O", "O", "B-loc")
    words = ("in", "Oslo", "in", "sailing", "Rome")
    encoder = Encoder([Sentence(words, tags)], most_words=6)
    # "in", and the class of Oslo and Rome; sailing's class occurs only once.
    assert encoder.ids == {"in": 2, "<Xx >": 3}
    assert encoder.size == 4
    inputs, targets, weights = encoder.for_training([Sentence(words, tags)])
    np.testing.assert_array_equal(inputs, [[2, 3, 2, 1, 3, 0]])
    np.testing.assert_array_equal(targets, [[1, 0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(weights, [[1, 1, 1, 1, 1, 0]])
    unknown = Sentence(("Bonn",), ("B-new",))
    np.testing.assert_array_equal(encoder.encode([unknown])[0, :2], [3, 0])


def test_a_cut_sentence_is_tagged_o_after_the_cut():
    from tagger import Encoder, Sentence

    sentence = Sentence(("a", "a", "a", "a"), ("B-x", "O", "B-x", "B-x"))
    encoder = Encoder([sentence], most_words=2)
    logits = np.array([[[2.0, 1.0], [0.0, 3.0]]])
    assert encoder.decode(logits, [sentence]) == [["B-x", "O", "O", "O"]]


def test_only_whole_entities_are_counted():
    """One of two found entities is right, and one of two is found."""
    from tagger import Sentence, scores

    gold = [Sentence(("a",) * 5, ("B-x", "I-x", "O", "B-y", "O"))]
    found = scores([["B-x", "O", "O", "B-y", "O"]], gold)
    assert found == {"F1": 50.0, "precision": 50.0, "recall": 50.0}


def test_the_classes_of_words():
    from tagger import class_of

    assert class_of("Iowa") == "<Xx >"
    assert class_of("B2B") == "<XdX >"
    assert class_of("@you12") == "<@xd >"
    assert class_of("sailing") == "<x ng>"


def test_translation_pairs_are_different():
    from translation import letters, load_pairs

    training, held_out = load_pairs()
    assert 0.08 < len(held_out) / len(training) < 0.13
    for side in (0, 1):
        seen = [letters(p[side]) for p in training + held_out]
        assert len(seen) == len(set(seen))


def test_translation_pairs_are_prose():
    from translation import is_prose, tidy

    assert is_prose(("Close %1", "Fermer %1"))
    assert not is_prose(("Python", "Python"))
    assert not is_prose(("<b>Bold</b>", "<b>Gras</b>"))
    assert not is_prose(("word " * 16, "mot"))
    assert tidy(" l\u2019id\u00e9e\u2026\xa0! ") == "l'id\u00e9e... !"


def test_translation_tokens_and_targets():
    import translation as data

    pairs = [("Close the file", "Fermer le fichier"), ("No.", "Non.")]
    tokenizer = data.train_tokenizer(pairs, 60)
    ids = data.encode(tokenizer, ["Fermer le fichier", "Non."], 20)
    assert data.decode(tokenizer, ids) == ["Fermer le fichier", "Non."]
    # Tokens after the end are not part of the text.
    ids[1, list(ids[1]).index(data.END) + 1 :] = 7
    assert data.decode(tokenizer, ids)[1] == "Non."

    french = np.array([[data.START, 8, 9, data.END, data.PAD]])
    inputs, targets, weights = data.for_training(french, french)
    np.testing.assert_array_equal(
        inputs["decoder_token_ids"], [[data.START, 8, 9, data.END]]
    )
    np.testing.assert_array_equal(targets, [[8, 9, data.END, data.PAD]])
    np.testing.assert_array_equal(weights, [[1, 1, 1, 0]])


def test_the_table_of_several_examples(tmp_path, monkeypatch):
    """The means are of 1.0 and 2.0, and of 1.5 and 2.5, in 6 CPU minutes."""
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    from benchmarks.quality import dense_twin_table

    size = {"total": 4000, "active": 4000}
    task = {
        "data": "texts",
        "figure": "loss",
        "better": "lower",
        "floor": ["chance", 3],
        "parameters": {"moe": {"total": 9000, "active": 4500}, "dense": size},
        "trainings": {
            "moe": [{"loss": x, "cpu_seconds": 90} for x in (1.0, 2.0)],
            "dense": [{"loss": x, "cpu_seconds": 90} for x in (1.5, 2.5)],
        },
        "differences": NO_DIFFERENCE,
    }
    task["more"] = {
        "tokens": 9,
        "cpu_seconds": {"cached": 1.0, "uncached": 4.0},
        "cpu_milliseconds_at_position": {"0": 2.5, "7": 2.25},
    }
    run = {"name": "tagger", "quick": False, "tasks": [task]}
    path = tmp_path / "tagger" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(run))
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- twins-table -->\n<!-- /twins-table -->\nb")
    dense_twin_table.main(["--folder", str(tmp_path), "--write", str(readme)])
    assert (
        "| texts | loss (lower is better) | 1.5000 (1.0000, 2.0000) | "
        "2.0000 (1.5000, 2.5000) | chance: 3.0000 | 9,000 (4,500 per token) | "
        "4,000 | 6.0 | 0.0e+00 | 0.0e+00 |" in readme.read_text()
    )
    assert "0: 2.5, 7: 2.2. 9 tokens take 1.0 CPU" in readme.read_text()
    path.write_text(json.dumps({**run, "quick": True}))
    with pytest.raises(SystemExit, match="run with --quick"):
        dense_twin_table.main(["--folder", str(tmp_path)])
