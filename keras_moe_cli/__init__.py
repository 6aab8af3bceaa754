"""Floor 5: the command `keras-moe`. Do not import it in `keras_moe`.

These files run a command line:

1. `bootstrap.py` chooses Keras's backend from the arguments
   (`startup_settings.py`) and checks that its packages are installed
   (`installed_packages.py`). These files must not import Keras, which reads
   `KERAS_BACKEND` once, when it is imported. `keras_moe` imports Keras.
2. `app.py` declares the five commands and their options.
3. `export_command.py`, `inspect_command.py`, `compare_command.py`,
   `bench_command.py`, and `launch_command.py` do the work. All but the last
   return a dict, which `result_tables.py` prints as tables or as JSON.
"""

from keras_moe_cli.bootstrap import main

__all__ = ["main"]
