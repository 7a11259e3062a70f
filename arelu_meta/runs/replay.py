"""Many small kernels launched as one: CUDA graphs of what is computed again and again on tensors of the same shapes."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_CALLS_BEFORE = 2  # that compile kernels, choose algorithms and make libraries ready, none of which can be recorded


class Replay:
    """A function of tensors whose kernels a GPU gets as one graph from the third call on.

    A host takes longer to launch a small network's kernels one by one than a GPU takes to run them. On other devices,
    and where the function does what cannot be recorded (it waits for the GPU, say), every call is an ordinary one.

    Args:
        function: from tensors to tensors, the same computation for the same shapes; it draws no random numbers. What
            else it reads and writes is tensors that stay where they are; writing to them in place is fine.
        fixed: says what else, when it changes, makes another computation: modes, the addresses of what is read.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], fixed: Callable[[], Hashable] = lambda: None
    ) -> None:
        self.function, self.fixed = function, fixed
        self.refused: str | None = None
        """Why nothing was recorded, once it was tried in vain."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: Hashable = None
        self._last: Hashable = None
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute.

        Args:
            inputs: on one device.

        Returns:
            What the function returns; the next call may overwrite it.
        """
        if not inputs[0].is_cuda or self.refused is not None:
            return self.function(*inputs)
        key = (self.fixed(), *((x.shape, x.dtype, x.device) for x in inputs))
        if self._graph is None or key != self._recorded:
            self._calls = self._calls + 1 if key == self._last else 1
            self._last = key
            if self._calls > _CALLS_BEFORE:
                self._record(inputs, key)
            if self._graph is None or key != self._recorded:
                return self.function(*inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._outputs

    def _record(self, inputs: tuple[Tensor, ...], key: Hashable) -> None:
        self._graph = None
        mine = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # Of this thread alone: others, which page-lock batches, say, may go on meanwhile.
            recording = torch.cuda.graph(graph, capture_error_mode="thread_local")
            with torch.cuda.device(inputs[0].device), recording:
                outputs = self.function(*mine)
        except RuntimeError as error:
            self.refused = str(error).splitlines()[0]
            torch.cuda.synchronize()
            return
        self._graph, self._recorded, self._inputs, self._outputs = graph, key, mine, outputs
