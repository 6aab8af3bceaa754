"""Run `python -m keras_moe_cli`, the same as `keras-moe`."""

from keras_moe_cli.bootstrap import main

if __name__ == "__main__":
    main()
