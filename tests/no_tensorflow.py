"""Keep TensorFlow out of a script that another backend runs.

Keras imports it to set its seeds, which takes longer than what most scripts
do. A script does `import no_tensorflow` before it sets a seed.
"""

import sys

sys.modules["tensorflow"] = None
