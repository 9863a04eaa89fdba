"""Priors of classes: means written by hand, what is in use, and what subtracting them does to a path."""

import torch

from torch_ctc_align import label_priors

HALF = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], [[0.25, 0.75, 0.0], [0.25, 0.5, 0.25]]])


def test_a_prior_is_the_mean_posterior():
    """Sums of quarters are exact; the logarithm there and back is not, by at most 2 ulp of float64."""
    torch.testing.assert_close(
        label_priors(HALF.double().log()).exp(), torch.tensor([2.0, 1.5, 0.5]).double() / 4, rtol=1e-15, atol=0
    )
