#!/usr/bin/env python3
"""Finds when each word of a recording is said, and writes subtitles: the Python side of the command ctc-align.

    python examples/align_speech.py [recording.wav text.txt]

Needs pip install 'torch_ctc_align[speech]'. Without arguments it aligns the clip in examples/data.
"""

import sys
from pathlib import Path

from torch_ctc_align.speech import Aligner, SpeechError

clip = Path(__file__).with_name("data") / "sense_and_sensibility_01_austen_64kb-0870.wav"
audio, text = map(Path, sys.argv[1:] or (clip, clip.with_suffix(".txt")))

try:
    aligner = Aligner.english()  # or Aligner.from_pretrained("facebook/wav2vec2-base-960h", device="cuda")
    alignment = aligner(audio, text.read_text(encoding="utf-8"), star="ends")
except (SpeechError, OSError) as error:
    sys.exit(f"align_speech: {error}")

for word in alignment.words:
    print(f"{word.text:12} {word.start:7.2f} {word.end:7.2f} {word.confidence or 0:6.2f}  {word.status}")
for stretch in alignment.unexplained:
    print(f"not in the text: {stretch.start:.2f} to {stretch.end:.2f} s")
print("wrote", alignment.save(Path("aligned") / f"{audio.stem}.srt"))
