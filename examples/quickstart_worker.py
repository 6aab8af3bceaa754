"""What `quickstart.py` and other examples run in processes of their own.

    quickstart_worker.py predict MODEL.keras INPUTS.npz OUT.npz
    quickstart_worker.py export MODEL.keras SAVED_MODEL_DIR [MODEL.tflite]
    quickstart_worker.py saved_model SAVED_MODEL_DIR INPUTS.npz OUT.npz
    quickstart_worker.py litert MODEL.tflite INPUTS.npz OUT.npz

The first two load the `.keras` file under the backend that KERAS_BACKEND
names. The last two know neither Keras nor keras_moe: an artifact runs in its
own runtime alone, once on all inputs together and once in small batches.
INPUTS.npz holds one array, or one for each of a model's named inputs.
"""

import sys

import numpy as np

SMALL_BATCH = 7


def main(command, *paths):
    """Runs one of the four jobs."""
    jobs = {
        "predict": predict,
        "export": export,
        "saved_model": run_saved_model,
        "litert": run_litert,
    }
    jobs[command](*paths)


def predict(model_path, inputs_path, out_path):
    """Writes the outputs of a `.keras` file under this backend."""
    model = load_model(model_path)
    np.savez(out_path, all=model.predict(read(inputs_path), verbose=0))


def export(model_path, saved_model_path, litert_path=None):
    """Exports a `.keras` file; the backend must be TensorFlow."""
    model = load_model(model_path)
    model.export(saved_model_path, format="tf_saved_model", verbose=False)
    if litert_path:
        model.export(litert_path, format="litert", verbose=False)


def load_model(path):
    """Loads the model; the import registers its layers.

    Not compiled: the file says how the backend that trained it compiled, and
    that is not right for another one (torch would spend a minute on it).
    """
    import keras
    import quickstart_model  # noqa: F401

    return keras.models.load_model(path, compile=False)


def run_saved_model(saved_model_path, inputs_path, out_path):
    """Writes the outputs of a SavedModel in plain TensorFlow."""
    import tensorflow as tf

    module = tf.saved_model.load(saved_model_path)

    def run(batch):
        return module.serve(tf.nest.map_structure(tf.constant, batch)).numpy()

    run_at_two_batch_sizes(run, inputs_path, out_path)


def run_litert(litert_path, inputs_path, out_path):
    """Writes the outputs of a LiteRT model; no TensorFlow op helps."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(litert_path)
    (source,) = interpreter.get_input_details()
    (target,) = interpreter.get_output_details()
    if source["shape_signature"][0] != -1:
        raise RuntimeError(
            "the LiteRT model must take any batch size, its input has the "
            f"shape {source['shape_signature'].tolist()}"
        )

    def run(batch):
        interpreter.resize_tensor_input(source["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], batch)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    run_at_two_batch_sizes(run, inputs_path, out_path)
    if "tensorflow" in sys.modules:
        raise RuntimeError("the LiteRT run must not import TensorFlow")


def read(inputs_path):
    """Returns the one array of an `.npz`, or a dict of several."""
    with np.load(inputs_path) as arrays:
        inputs = dict(arrays)
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


def run_at_two_batch_sizes(run, inputs_path, out_path):
    """Writes `all` (one batch) and `small` (batches of 7), both in order."""
    inputs = read(inputs_path)
    named = isinstance(inputs, dict)
    length = len(next(iter(inputs.values())) if named else inputs)

    def rows(start):
        chosen = slice(start, start + SMALL_BATCH)
        if named:
            return {name: array[chosen] for name, array in inputs.items()}
        return inputs[chosen]

    small = [run(rows(start)) for start in range(0, length, SMALL_BATCH)]
    np.savez(out_path, all=run(inputs), small=np.concatenate(small))


if __name__ == "__main__":
    main(*sys.argv[1:])
