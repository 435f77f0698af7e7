"""What is done again and again on a device comes to be repeated by it. A few times it is done operation by operation;
the next time it is recorded, too; the time after that it is replayed, and done again operation by operation from where
it began: only if both gave the same bits are all following times replays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import torch

from state.user_code import described, is_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from orchestrator.policies.capture import Capture

WARM_UP = 3
"""Times that something is done before it is recorded; as many as in torch's documentation."""
_NEAR = 10.0
"""How many times as far from the eager result as a second one a replayed one may be, where the device does not give the
same bits twice anyway."""


class Effects(Protocol):
    """All that doing something once changes."""

    def tensors(self) -> Sequence[Tensor]:
        """On the device; they stay where they are."""
        ...

    def numbers(self) -> Sequence[Tensor]:
        """Those of them whose distance counts where the device does not give the same bits twice."""
        ...

    def on_host(self) -> Any:
        """What the host knows, to be had back by `set_on_host`."""
        ...

    def set_on_host(self, known: Any) -> None: ...

    def on_host_again(self, before: Any) -> Callable[[], None]:
        """To be called after a recording, before which `on_host` returned `before`: does again what the host did."""
        ...


class Repeated:
    """One thing that is done again and again, in the same memory: how far it has come."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.warm_ups = 0
        self.replay: Callable[[], None] | None = None
        self.checked = False
        """Whether replaying it is known to do the same."""


class Replays:
    """Those of whoever does such things (`who`: "the learner"; `what`: "a minibatch") because of a `setting`.

    What can't be recorded is done operation by operation, as without, and `warnings` say why.
    """

    def __init__(self, capture: Capture, setting: object, who: str, what: str) -> None:
        self._capture = capture
        self._setting, self._who, self._what = str(setting), who, what
        self._recorded = WeakSet[Repeated]()
        self.works = True
        """Whether anything is still going to be recorded or replayed."""
        self.warnings: dict[str, str] = {}
        """What the user should know, by what it is about."""

    def run(self, one: Repeated, effects: Effects, eagerly: Callable[[], None]) -> bool:
        """Do what `eagerly` does, with its `effects`; whether that was a replay."""
        if one.replay is not None and one.checked:
            one.replay()
            return True
        if not self.works:
            eagerly()
        elif one.warm_ups < WARM_UP:
            one.warm_ups += 1
            with self._capture.warming_up():
                eagerly()
        elif one.replay is None:
            self._record(one, effects, eagerly)
            eagerly()
        else:
            # Not what was recorded: numbers that a recording has as they were would look right.
            self._check(one, one.replay, effects, eagerly)
        return False

    def give_up(self, reason: str) -> None:
        """Go on without."""
        self.works = False
        for one in self._recorded:
            one.replay = None
        goes = "go" if self._who.endswith("s") else "goes"
        self.warnings[self._setting] = f"{self._setting}: {self._who} {goes} on without graphs, because {reason}"

    def _record(self, one: Repeated, effects: Effects, eagerly: Callable[[], None]) -> None:
        """Nothing is done by it, whether that is possible or not."""
        before = effects.on_host()
        try:
            on_device = self._capture.record(eagerly)
            on_host = effects.on_host_again(before)
        except BaseException as error:
            if is_signal(error):
                raise
            where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            self.give_up(f"{self._what} can't be recorded: {described(error)}{where}")
        else:

            def replay() -> None:
                on_device()
                on_host()

            one.replay = replay
            self._recorded.add(one)
        effects.set_on_host(before)

    def _check(self, one: Repeated, replay: Callable[[], None], effects: Effects, eagerly: Callable[[], None]) -> None:
        """Do it eagerly, and see whether replaying it does the same."""
        before, on_host = _copies(effects.tensors()), effects.on_host()
        generator = self._capture.generator_state()

        def from_before(do: Callable[[], None]) -> tuple[list[Tensor], list[Tensor]]:
            for tensor, content in zip(effects.tensors(), before, strict=True):
                tensor.copy_(content)
            effects.set_on_host(on_host)
            self._capture.set_generator_state(generator)
            do()
            return _copies(effects.tensors()), _copies(effects.numbers())

        replayed, eager = from_before(replay), from_before(eagerly)
        one.checked = True
        if _same_bits(replayed[0], eager[0]):
            return
        again = from_before(eagerly)
        # Not every device gives the same bits twice: cuDNN's convolutions need not.
        usual = _distance(again[1], eager[1])
        if not _same_bits(again[0], eager[0]) and _distance(replayed[1], eager[1]) <= _NEAR * usual:
            return
        one.replay = None
        far = _distance(replayed[1], again[1])
        self.give_up(f"{self._what} that is replayed differs from one that is not, by {far:.3g}")


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _same_bits(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(
        torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
        for one, other in zip(some, others, strict=True)
    )


def _distance(some: list[Tensor], others: list[Tensor]) -> float:
    # What is the same is at no distance, also where it is infinite.
    squares = [
        torch.where(one == other, 0.0, (one - other).double().square()).sum()
        for one, other in zip(some, others, strict=True)
    ]
    return float(sum(squares)) ** 0.5
