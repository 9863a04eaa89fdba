"""CTC forced alignment (Viterbi, no beam) as a PyTorch operator: ``torch.ops.ctc_align.forced_align``."""

from types import FunctionType

from torch_ctc_align._torchscript import explain_to_torchscript
from torch_ctc_align.aligner import Alignment, ForcedAligner
from torch_ctc_align.config import Config, config, set_memory_budget
from torch_ctc_align.drop_in import TorchaudioInstallation, install_in_torchaudio
from torch_ctc_align.errors import AlignmentError, AlignmentWarning
from torch_ctc_align.functional import class_posteriors, forced_align, min_frames, posteriors, span_posteriors
from torch_ctc_align.loss import CTCLoss, ctc_loss
from torch_ctc_align.priors import label_priors, subtract_priors
from torch_ctc_align.sharding import register_sharding
from torch_ctc_align.spans import TokenSpan, TokenSpans, merge_tokens, token_durations, token_indices, token_spans
from torch_ctc_align.stars import GAP_STAR, merge_stars, star_scores, star_spans, wild_gaps
from torch_ctc_align.unspoken import UnspokenBlocks, find_unspoken
from torch_ctc_align.windows import Window, iter_windows, plan_windows, run_windows
from torch_ctc_align.words import Pauses, WordBorders, WordSpan, merge_words, word_borders

__version__ = "0.1.0"

__all__ = [
    "GAP_STAR",
    "Alignment",
    "AlignmentError",
    "AlignmentWarning",
    "CTCLoss",
    "Config",
    "ForcedAligner",
    "Pauses",
    "TokenSpan",
    "TokenSpans",
    "TorchaudioInstallation",
    "UnspokenBlocks",
    "Window",
    "WordBorders",
    "WordSpan",
    "class_posteriors",
    "config",
    "ctc_loss",
    "find_unspoken",
    "forced_align",
    "install_in_torchaudio",
    "iter_windows",
    "label_priors",
    "merge_stars",
    "merge_tokens",
    "merge_words",
    "min_frames",
    "plan_windows",
    "posteriors",
    "register_sharding",
    "run_windows",
    "set_memory_budget",
    "span_posteriors",
    "star_scores",
    "star_spans",
    "subtract_priors",
    "token_durations",
    "token_indices",
    "token_spans",
    "wild_gaps",
    "word_borders",
]

explain_to_torchscript(function for name in __all__ if isinstance(function := globals()[name], FunctionType))
