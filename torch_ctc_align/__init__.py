"""CTC forced alignment (exact Viterbi) as a PyTorch operator: ``torch.ops.ctc_align.forced_align``."""

from importlib.metadata import version as _version

from torch_ctc_align import _operator as _operator
from torch_ctc_align.functional import TokenSpan, TokenSpans, forced_align, merge_tokens, token_spans

__version__ = _version("torch_ctc_align")

__all__ = ["TokenSpan", "TokenSpans", "forced_align", "merge_tokens", "token_spans"]
