"""Keep libraries that a script does not use out of its Keras.

Keras imports TensorFlow to set seeds, and scikit-learn and Matplotlib for
wrappers and plots, which takes longer than most scripts. A script does `import
light_keras` before it imports Keras. A test may import what a script defines,
and keeps all libraries.
"""

import sys

if "pytest" not in sys.modules:
    for name in ("tensorflow", "sklearn", "matplotlib"):
        sys.modules[name] = None
