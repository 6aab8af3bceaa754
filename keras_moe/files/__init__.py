"""Write files so that an interrupt, a kill, or a full disk loses nothing."""

from keras_moe.files.replacing import (
    NEW,
    remove_leftovers,
    scratch_beside,
    swap_in,
)

__all__ = ["NEW", "remove_leftovers", "scratch_beside", "swap_in"]
