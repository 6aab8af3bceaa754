"""Resume training after its processes were killed."""

from keras_moe.distribution.backup.callback import BackupAndResume
from keras_moe.distribution.backup.loading import load_backup

__all__ = ["BackupAndResume", "load_backup"]
