"""An aligner without a model, for the tests of the command: every word takes half a second, and some texts fail.

As a program, ``python stand_in.py ARGUMENTS``, it is the command ``ctc-align`` with this aligner.
"""

import signal
import sys
from pathlib import Path

from torch_ctc_align.speech import Segment, SpeechAlignment, SpeechError, Stretch, Token, Word

WORD = 0.5  # seconds


class StandIn:
    """Words of a text tell it what to do: fail, be unsure, press Ctrl-C."""

    def __init__(self):
        self.calls = []
        self.notes = []

    def __call__(self, audio, text, *, offset=0.0, duration=None, progress=None, **options):
        self.calls.append((Path(audio).name, text, offset, duration, options))
        self.notes = ["resampled from 44100 Hz to 16000 Hz"] if "resampled" in text else []
        if progress is not None:
            progress("listening", 1, 2)
        if "broken" in text:
            raise SpeechError(f"{audio} is broken")
        if "bug" in text:
            raise RuntimeError("shapes\ndiffer")
        if "memory" in text:
            raise MemoryError
        if "signal" in text:  # as the terminal does it
            signal.raise_signal(signal.SIGINT)
        if "interrupt" in text:
            raise KeyboardInterrupt
        return alignment_of(text, Path(audio))


def alignment_of(text, audio=None):
    """Each line a segment. A word in capitals is not spoken, one with a digit inferred, "unsure" unlikely."""
    words, tokens, segments, place, time = [], [], [], 0, 0.0
    for number, line in enumerate(text.splitlines()):
        first, line_begin = len(words), time
        for piece in line.split():
            begin = text.index(piece, place)
            place = begin + len(piece)
            status = "unspoken" if piece.isupper() else "inferred" if any(map(str.isdigit, piece)) else "spoken"
            score = (-5.0 if "unsure" in text else -0.1) if status == "spoken" else None
            start, end = (None, None) if status == "unspoken" else (time, time + WORD)
            words.append(Word(piece, begin, place, number, start, end, score, score and 0.9, status))
            if status != "unspoken":
                tokens.append(Token(piece[0], time, time + WORD, -0.1, len(words) - 1))
                time += WORD
        if len(words) > first:
            said = any(word.start is not None for word in words[first:])
            begin = text.index(line)
            times = (line_begin, time, 0.9, 0.9, 0.9) if said else (None,) * 5
            segments.append(Segment(line, begin, begin + len(line), range(first, len(words)), *times))
    if not words:
        raise SpeechError("the text has no words")
    unexplained = [Stretch(time, time + 1.25)] if "applause" in text else []
    seconds = time + 2.0
    return SpeechAlignment(text, words, segments, tokens, unexplained, seconds, 0.02, -1.0, "stand-in", "en", audio)


def main(arguments):
    from torch_ctc_align.speech import command

    command.load_aligner = lambda arguments: StandIn()
    return command.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
