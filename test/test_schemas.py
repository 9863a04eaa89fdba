"""The operators' schemas. Programs that were saved hold calls of them: one may grow at its end, with a default."""

import expecttest
import torch

import torch_ctc_align  # noqa: F401

NAMES = ["forced_align", "posteriors", "class_posteriors", "span_posteriors", "posteriors_backward", "occupancies"]


class SchemasTest(expecttest.TestCase):
    def test_schemas_are_pinned(self):
        schemas = [str(getattr(torch.ops.ctc_align, name).default._schema) for name in NAMES]
        self.assertExpectedInline(
            "\n".join(schemas).replace(", ", ",\n  "),
            """\
ctc_align::forced_align(Tensor log_probs,
  Tensor targets,
  Tensor? input_lengths=None,
  Tensor? target_lengths=None,
  int blank=0,
  Tensor? star_scores=None,
  Tensor? wild_gaps=None) -> (Tensor paths,
  Tensor scores)
ctc_align::posteriors(Tensor log_probs,
  Tensor targets,
  Tensor? input_lengths=None,
  Tensor? target_lengths=None,
  int blank=0,
  Tensor? star_scores=None,
  Tensor? wild_gaps=None) -> (Tensor posteriors,
  Tensor log_likelihoods)
ctc_align::class_posteriors(Tensor log_probs,
  Tensor targets,
  Tensor? input_lengths=None,
  Tensor? target_lengths=None,
  int blank=0,
  Tensor? star_scores=None,
  Tensor? wild_gaps=None) -> (Tensor posteriors,
  Tensor log_likelihoods)
ctc_align::span_posteriors(Tensor log_probs,
  Tensor targets,
  Tensor starts,
  Tensor ends,
  Tensor? input_lengths=None,
  Tensor? target_lengths=None,
  int blank=0,
  Tensor? star_scores=None,
  Tensor? wild_gaps=None) -> (Tensor posteriors,
  Tensor log_likelihoods)
ctc_align::posteriors_backward(Tensor grad_posteriors,
  Tensor log_probs,
  Tensor targets,
  Tensor? input_lengths=None,
  Tensor? target_lengths=None,
  int blank=0,
  Tensor? star_scores=None,
  Tensor? wild_gaps=None) -> Tensor
ctc_align::occupancies(Tensor log_probs,
  Tensor targets,
  Tensor? input_lengths,
  Tensor? target_lengths,
  int blank,
  Tensor star_scores,
  Tensor? wild_gaps=None) -> (Tensor occupancies,
  Tensor log_likelihoods)""",
        )

    def test_no_operator_is_left_out(self):
        there = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ctc_align::")}
        assert there == {f"ctc_align::{name}" for name in NAMES}
