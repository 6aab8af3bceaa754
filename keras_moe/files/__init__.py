"""Write files so that an interrupt, a kill, or a full disk loses nothing."""

from keras_moe.files.links import follow_links
from keras_moe.files.replacing import (
    NEW,
    replace_file,
    scratch_beside,
    swap_in,
)

__all__ = ["NEW", "follow_links", "replace_file", "scratch_beside", "swap_in"]
