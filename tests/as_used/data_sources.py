"""Make each kind of data set that `fit` takes from the same arrays."""

import keras


class Batches(keras.utils.PyDataset):
    """A `PyDataset` of the batches."""

    def __init__(self, x, y, batch_size):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self):
        return len(self.x) // self.batch_size

    def __getitem__(self, index):
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.x[part], self.y[part]


def tf_data(x, y, batch_size):
    """Return a `tf.data.Dataset`."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)


def torch_loader(x, y, batch_size):
    """Return a `torch.utils.data.DataLoader`."""
    import torch

    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(data, batch_size=batch_size)


def grain_batches(x, y, batch_size):
    """Return an endless `grain.MapDataset` of batches."""
    import grain

    pairs = list(zip(x, y, strict=True))
    return grain.MapDataset.source(pairs).repeat().batch(batch_size)


SOURCES = {
    "tf.data": tf_data,
    "PyDataset": Batches,
    "torch": torch_loader,
    "grain": grain_batches,
}
