"""CTC forced alignment (exact Viterbi) as a PyTorch operator: ``torch.ops.ctc_align.forced_align``."""

from torch_ctc_align import _operator as _operator
from torch_ctc_align.config import Config, config, set_memory_budget
from torch_ctc_align.functional import TokenSpan, TokenSpans, forced_align, merge_tokens, token_spans
from torch_ctc_align.words import WordSpan, merge_words

__version__ = "0.1.0"

__all__ = [
    "Config",
    "TokenSpan",
    "TokenSpans",
    "WordSpan",
    "config",
    "forced_align",
    "merge_tokens",
    "merge_words",
    "set_memory_budget",
    "token_spans",
]
