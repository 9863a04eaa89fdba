"""Prints the word times that pocketsphinx finds in the demo clip, as JSON.

pip install pocketsphinx==5.1.1
python test/data/align_with_pocketsphinx.py > test/data/sense_and_sensibility_0870_pocketsphinx.json
"""

import json
import re
import wave
from importlib.metadata import version
from pathlib import Path

from pocketsphinx import Decoder

CLIP = Path(__file__).parents[2] / "examples" / "data" / "sense_and_sensibility_01_austen_64kb-0870.wav"
FRAMES_PER_SECOND = 100

with wave.open(str(CLIP)) as file:
    samples = file.readframes(file.getnframes())
words = re.findall(r"[a-z']+", CLIP.with_suffix(".txt").read_text(encoding="utf-8").lower())

decoder = Decoder(samprate=16000, bestpath=False, loglevel="ERROR")
decoder.set_align_text(" ".join(words))
for prepare in (lambda: None, decoder.set_alignment):  # first the words, then their phones: finer times
    prepare()
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()

# "to(2)" is the second pronunciation of "to"; "<sil>" is silence.
spoken = [(re.sub(r"\(\d+\)$", "", word.name), word) for word in decoder.get_alignment() if word.name[0] != "<"]
if [name for name, _ in spoken] != words:
    raise SystemExit(f"expected the words of the transcript, got {[name for name, _ in spoken]}")
result = {
    "aligner": f"pocketsphinx {version('pocketsphinx')} with the English model that comes with it",
    "columns": ["word", "start (s)", "end (s)"],
    "words": [
        [name, word.start / FRAMES_PER_SECOND, (word.start + word.duration) / FRAMES_PER_SECOND]
        for name, word in spoken
    ],
}
print(json.dumps(result))
