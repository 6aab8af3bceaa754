"""`python -m keras_moe.cli`, the same as `keras-moe`."""

import keras_moe_cli

keras_moe_cli.main()
