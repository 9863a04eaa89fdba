"""From a recording and its text to words with times: ``Aligner``, and the command ``ctc-align``.

The libraries for audio, text and files are extras of the package, ``pip install 'torch_ctc_align[speech]'``. Each is
imported where it is needed; one that is missing is a sentence with the pip command.
"""

from torch_ctc_align.speech.aligner import Aligner
from torch_ctc_align.speech.alignment import Segment, SpeechAlignment, Stretch, Token, Word
from torch_ctc_align.speech.errors import SpeechError
from torch_ctc_align.speech.models import AcousticModel

__all__ = ["AcousticModel", "Aligner", "Segment", "SpeechAlignment", "SpeechError", "Stretch", "Token", "Word"]
