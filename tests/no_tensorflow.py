"""Keep TensorFlow out of a script that another backend runs.

Keras imports TensorFlow to set seeds, which takes longer than most scripts. A
script does `import no_tensorflow` before it sets a seed.
"""

import sys

sys.modules["tensorflow"] = None
