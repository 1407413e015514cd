"""``python -m serving …`` is ``radjax …``."""

import sys

from serving.cli import main

sys.exit(main())
