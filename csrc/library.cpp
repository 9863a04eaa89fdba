// The operators' schemas, nothing else. Kernels register themselves: csrc/cpu, csrc/cuda.
#include "torch_seam.h"

STABLE_TORCH_LIBRARY(ctc_align, library) {
  library.def(
      "forced_align(Tensor log_probs, Tensor targets, Tensor? input_lengths=None, Tensor? target_lengths=None, "
      "int blank=0, Tensor? star_scores=None, Tensor? wild_gaps=None) -> (Tensor paths, Tensor scores)");
  library.def(
      "posteriors(Tensor log_probs, Tensor targets, Tensor? input_lengths=None, Tensor? target_lengths=None, "
      "int blank=0, Tensor? star_scores=None, Tensor? wild_gaps=None) -> (Tensor posteriors, Tensor log_likelihoods)");
  library.def(
      "class_posteriors(Tensor log_probs, Tensor targets, Tensor? input_lengths=None, Tensor? target_lengths=None, "
      "int blank=0, Tensor? star_scores=None, Tensor? wild_gaps=None) -> (Tensor posteriors, Tensor log_likelihoods)");
  library.def(
      "span_posteriors(Tensor log_probs, Tensor targets, Tensor starts, Tensor ends, Tensor? input_lengths=None, "
      "Tensor? target_lengths=None, int blank=0, Tensor? star_scores=None, Tensor? wild_gaps=None) "
      "-> (Tensor posteriors, Tensor log_likelihoods)");
  library.def(
      "occupancies(Tensor log_probs, Tensor targets, Tensor? input_lengths, Tensor? target_lengths, int blank, "
      "Tensor star_scores, Tensor? wild_gaps=None) -> (Tensor occupancies, Tensor log_likelihoods)");
  library.def(
      "posteriors_backward(Tensor grad_posteriors, Tensor log_probs, Tensor targets, Tensor? input_lengths=None, "
      "Tensor? target_lengths=None, int blank=0, Tensor? star_scores=None, Tensor? wild_gaps=None) -> Tensor");
}
