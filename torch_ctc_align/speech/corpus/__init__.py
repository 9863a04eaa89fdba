"""Corpora: many recordings and their texts, on whatever engine hands over columns.

``Align`` is the one piece that every engine calls. ``ctc-align corpus`` (:mod:`torch_ctc_align.speech.command.corpus`)
reads a manifest and writes one file for each of its shards, with processes of this machine or with Ray.
"""

from torch_ctc_align.speech.corpus.align import Align
from torch_ctc_align.speech.corpus.columns import COLUMNS, STATUSES, arrow_schema

__all__ = ["COLUMNS", "STATUSES", "Align", "arrow_schema"]
