"""What a learner does for each minibatch: its gradient, and once as many as are accumulated have theirs, the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from orchestrator.learning.graphs import MinibatchGraphs
    from orchestrator.learning.minibatch_gradient import MinibatchGradient
    from orchestrator.learning.minibatches import Draw
    from orchestrator.learning.optimization import Optimization


class MinibatchStep:
    """Steps once for `accumulate` minibatches; has `graphs` (None: there are none) repeat what they have recorded."""

    def __init__(
        self, gradient: MinibatchGradient, optimization: Optimization, accumulate: int, graphs: MinibatchGraphs | None
    ) -> None:
        self._gradient = gradient
        self._optimization = optimization
        self._accumulate = accumulate
        self._graphs = graphs if graphs is not None and graphs.apply else None
        self.warnings: Mapping[str, str] = {} if graphs is None else graphs.warnings
        """What the user should know, by what it is about."""
        self._waiting = 0

    def begin_epoch(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Returns the epoch's batches, of each shard, where they are from now on."""
        self._waiting = 0  # an epoch that failed may have left some
        return batches if self._graphs is None else [self._graphs.hold(batches[0])]

    def sources(self, batches: Sequence[dict[str, Tensor]]) -> Sequence[dict[str, Tensor]]:
        """What minibatches of the batches are to be drawn from."""
        return batches if self._graphs is None else [self._graphs.batch]

    @property
    def fixed_size(self) -> bool:
        """Whether minibatches are to be of the same size in each epoch."""
        return self._graphs is not None

    @property
    def statistics(self) -> dict[str, float]:
        """Of the present epoch."""
        return {} if self._graphs is None else {"replayed_minibatches": float(self._graphs.replayed)}

    def learn(
        self, draws: Sequence[Draw | None], epoch: int, update_epoch: int, mb_idx: int, *, first: bool
    ) -> tuple[bool, bool]:
        """Learn from a minibatch. Takes and returns what `MinibatchGradient.add` does."""
        place = self._waiting
        steps = place + 1 == self._accumulate
        self._waiting = 0 if steps else place + 1

        def learned(draws: Sequence[Draw | None]) -> tuple[bool, bool]:
            ended = self._gradient.add(draws, epoch, update_epoch, mb_idx, share=1.0 / self._accumulate, first=first)
            if steps:
                self._optimization.step()
            return ended

        if self._graphs is None or draws[0] is None:
            return learned(draws)
        self._graphs.run(draws[0], epoch, place, lambda draw: learned([draw]), steps=steps)
        return False, False

    def end_pass(self) -> None:
        """Step with what is left of an accumulation."""
        if self._waiting:
            self._optimization.step()
        self._waiting = 0
