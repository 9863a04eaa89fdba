"""DTensor: what ``torch.distributed.tensor`` must know about the operators."""

from typing import Any

import torch

from torch_ctc_align._torch_seam import schema_of


def register_sharding() -> None:
    """Tells ``torch.distributed.tensor`` that the items of a batch may lie on different devices.

    Without this call an operator refuses DTensors. After it, ``torch.ops.ctc_align.forced_align`` and the operators of
    the posteriors take DTensors that are sharded over the batch, or replicated; results and gradients have the same
    placement, and nothing is communicated. Arguments of other placements are redistributed first, as every operator
    does it. Importing the package does not make this call, because importing ``torch.distributed.tensor`` takes a
    second.

    Uses ``torch.distributed.tensor.experimental.register_sharding``, which torch may change. May be called again.

    Raises:
        NotImplementedError: this torch has no such function, or was built without torch.distributed.
    """
    try:
        from torch.distributed.tensor import Replicate, Shard
        from torch.distributed.tensor.experimental import register_sharding as register
    except (ImportError, RuntimeError) as error:
        raise NotImplementedError(
            "register_sharding: this torch has no torch.distributed.tensor.experimental.register_sharding; "
            "give the operators local tensors (DTensor.to_local)"
        ) from error

    def register_one(operator: Any) -> None:
        results = len(schema_of(operator).returns)

        def placements(*arguments: Any) -> Any:
            """Returns the placements to accept for results and arguments: the batch is dimension 0 of each tensor."""
            tensors = [hasattr(argument, "placements") for argument in arguments]  # None and the blank have none
            return [
                ([placement] * results, [placement if is_tensor else None for is_tensor in tensors])
                for placement in (Shard(0), Replicate())
            ]

        register(operator)(placements)

    sums = "posteriors", "class_posteriors", "occupancies", "span_posteriors", "posteriors_backward"
    for name in ("forced_align", *sums):
        register_one(getattr(torch.ops.ctc_align, name).default)
