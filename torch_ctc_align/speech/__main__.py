"""``python -m torch_ctc_align.speech`` is the command ``ctc-align``."""

import sys

from torch_ctc_align.speech.command import main

sys.exit(main())
