"""Test the statements and the code of the pages in docs/."""

import re
import shlex

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from paths import ROOT

from keras_moe.distribution.jobs import job_text
from keras_moe.export import FORMATS
from keras_moe_cli.bootstrap import run_command

PAGE = (ROOT / "docs" / "from-laptop-to-cluster.md").read_text()
STEPS = (ROOT / "docs" / "custom-training.md").read_text()
EXPORT = (ROOT / "docs" / "export.md").read_text()
COMMANDS = re.findall(r"^keras-moe (launch [^>\n]*)", PAGE, re.MULTILINE)


@pytest.mark.skipif(BACKEND != "torch", reason="no backend is used")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_valid(command, monkeypatch, capsys):
    """Each command runs without starting processes; its script exists."""
    started = []

    def start(script, *arguments, **options):
        started.append(script)
        return 0

    for name in ("launch", "launch_on_ray"):
        monkeypatch.setattr(f"keras_moe_cli.launch_command.{name}", start)
    assert run_command(shlex.split(command)) == 0
    assert started or "--print" in command and capsys.readouterr().out
    for script in re.findall(r"\S+/\S+\.py", command):
        assert (ROOT / script).is_file()


def test_the_page_shows_the_job_that_is_printed():
    text = job_text("slurm", "train.py", backend="jax", nodes=4)
    assert f"<!-- slurm -->\n```bash\n{text}```\n<!-- /slurm -->" in PAGE


FREEZES = """        for part in (self.moe, self.norm):
            part.trainable = self.trainable
"""


@pytest.mark.parametrize("freezes", [True, False])
def test_a_frozen_custom_layer_needs_two_lines(freezes, tmp_path, rng):
    """Without these lines, the parts train again after loading or cloning."""
    *_, code = blocks_of(STEPS, BACKEND)
    assert FREEZES in code
    imports = "import keras\nfrom keras_moe import MoEBlock\n"
    namespace = {}
    exec(imports + (code if freezes else code.replace(FREEZES, "")), namespace)
    inputs = keras.Input((6,))
    trunk = namespace["Trunk"]()
    model = keras.Model(inputs, keras.layers.Dense(2)(trunk(inputs)))
    trunk.trainable = False
    model.save(tmp_path / "model.keras")
    x = rng.normal(size=(32, 6)).astype("float32")
    for other in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
    ):
        again = other.layers[1]
        assert not again.trainable
        assert again.moe.router.trainable is not freezes
        before = [np.array(to_numpy(w)) for w in again.weights]
        other.compile("sgd", "mse")
        other.fit(x, x[:, :2], verbose=0)
        after = [to_numpy(w) for w in again.weights]
        still = map(np.array_equal, before, after)
        assert all(still) is freezes


def blocks_of(page, backend):
    """Return a page's Python blocks for all backends or for this backend."""
    pattern = r"(?:<!-- (\w+) -->\n)?```python\n(.*?)```"
    found = re.findall(pattern, page, flags=re.DOTALL)
    assert {name for name, _ in found} == {"", "jax", "tensorflow", "torch"}
    return [text for name, text in found if name in ("", backend)]


def test_custom_training_steps_include_the_auxiliary_losses():
    """Each step has the loss of `fit`, the sum of task and balance loss.

    The balance loss is close to its weight, 0.1, its value for even loads.
    """
    setup, *others = blocks_of(STEPS, BACKEND)
    namespace = {}
    exec(compile(setup, "custom-training.md", "exec"), namespace)
    model, x, y = (namespace[name] for name in ("model", "x", "y"))
    weights = model.get_weights()
    model.compile("adam", "mse")
    task = model.evaluate(x, y, batch_size=32, verbose=0)
    expected = model.fit(x, y, batch_size=32, verbose=0).history["loss"][0]
    assert 0.09 < expected - task < 0.2

    model.set_weights(weights)
    for block in others:
        exec(compile(block, "custom-training.md", "exec"), namespace)
    losses = [float(to_numpy(namespace["loss"]))]
    for name, key in (("StepModel", "total_loss"), ("LossModel", "loss")):
        model.set_weights(weights)
        own = namespace[name](model.inputs, model.outputs)
        own.compile(keras.optimizers.Adam(1e-3), "mse")
        history = own.fit(x, y, batch_size=32, verbose=0).history
        losses.append(history[key][0])
    np.testing.assert_allclose(losses, [expected] * 3, rtol=1e-5)


# Only PyTorch does not start a TensorFlow process, which takes seconds.
@pytest.mark.parametrize(
    "format",
    {
        "jax": [pytest.param("litert", marks=pytest.mark.slow)],
        "tensorflow": [pytest.param("tf_saved_model", marks=pytest.mark.slow)],
        "torch": ["torch"],
    }[BACKEND],
)
def test_the_page_about_export(format, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks_of(EXPORT, BACKEND):
        exec(compile(block, "export.md", "exec"), namespace)
    model, x, manifest = (
        namespace[name] for name in ("model", "x", "manifest")
    )
    assert manifest["format"] == format
    assert manifest["mixtures"][0]["num_experts"] == 4
    assert manifest["verified"]["largest_difference"] <= 1e-4
    assert namespace["sealed"]["bytes"] > 0
    expected = to_numpy(model(x))
    for found in (namespace["outputs"], namespace["restored"](x)):
        np.testing.assert_allclose(to_numpy(found), expected, atol=1e-4)
    printed = capsys.readouterr().out
    assert "`path` must be a new folder, an empty one, " in printed


def test_the_page_about_export_lists_all_files_of_all_formats():
    for name, format in FORMATS.items():
        [row] = re.findall(rf'^\| `"{name}"` .*', EXPORT, re.MULTILINE)
        files = {part.split("/")[0] for part in format.parts}
        assert all(file in row for file in files)
