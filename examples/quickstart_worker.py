"""What `quickstart.py` runs in processes of their own.

    quickstart_worker.py predict MODEL.keras IMAGES.npz OUT.npz
    quickstart_worker.py export MODEL.keras SAVED_MODEL_DIR MODEL.tflite
    quickstart_worker.py saved_model SAVED_MODEL_DIR IMAGES.npz OUT.npz
    quickstart_worker.py litert MODEL.tflite IMAGES.npz OUT.npz

The first two load the `.keras` file under the backend that KERAS_BACKEND
names. The last two know neither Keras nor keras_moe: an artifact runs in its
own runtime alone, once on all images together and once in small batches.
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


def predict(model_path, images_path, out_path):
    """Writes the probabilities of a `.keras` file under this backend."""
    model = load_model(model_path)
    images = np.load(images_path)["images"]
    np.savez(out_path, all=model.predict(images, verbose=0))


def export(model_path, saved_model_path, litert_path):
    """Exports a `.keras` file; the backend must be TensorFlow."""
    model = load_model(model_path)
    model.export(saved_model_path, format="tf_saved_model", verbose=False)
    model.export(litert_path, format="litert", verbose=False)


def load_model(path):
    """Loads the model; the import registers its layers.

    Not compiled: the file says how the backend that trained it compiled, and
    that is not right for another one (torch would spend a minute on it).
    """
    import keras
    import quickstart_model  # noqa: F401

    return keras.models.load_model(path, compile=False)


def run_saved_model(saved_model_path, images_path, out_path):
    """Writes the probabilities of a SavedModel in plain TensorFlow."""
    import tensorflow as tf

    module = tf.saved_model.load(saved_model_path)
    run_at_two_batch_sizes(
        lambda batch: module.serve(tf.constant(batch)).numpy(),
        images_path,
        out_path,
    )


def run_litert(litert_path, images_path, out_path):
    """Writes the probabilities of a LiteRT model; no TensorFlow op helps."""
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

    run_at_two_batch_sizes(run, images_path, out_path)
    if "tensorflow" in sys.modules:
        raise RuntimeError("the LiteRT run must not import TensorFlow")


def run_at_two_batch_sizes(run, images_path, out_path):
    """Writes `all` (one batch) and `small` (batches of 7), both in order."""
    images = np.load(images_path)["images"]
    starts = range(0, len(images), SMALL_BATCH)
    small = [run(images[start : start + SMALL_BATCH]) for start in starts]
    np.savez(out_path, all=run(images), small=np.concatenate(small))


if __name__ == "__main__":
    main(*sys.argv[1:])
