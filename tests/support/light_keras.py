"""Keep libraries that a script does not use out of its Keras.

Keras imports TensorFlow to set seeds, and scikit-learn and Matplotlib for
wrappers and plots, which takes longer than most scripts. A script imports
`light_keras` before Keras. If a test imports the script, all libraries stay
available.
"""

import sys

if "pytest" not in sys.modules:
    for name in ("tensorflow", "sklearn", "matplotlib"):
        sys.modules[name] = None
