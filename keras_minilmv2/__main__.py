"""`python -m keras_minilmv2`."""

import sys

from keras_minilmv2.cli import main

sys.exit(main())
