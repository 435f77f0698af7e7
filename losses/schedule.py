"""When a loss takes part in training: a range of epochs, and within it some epochs of a repeating cycle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Epochs in which a loss is active; by default all of them.

    `from_epoch` is the first epoch (counted from 0) and `to_epoch` the first one after the range (`None`:
    no end). With `cycle`, the range is cut into cycles of that many epochs, beginning at `from_epoch`, and
    only the epochs of each cycle whose indices (0 to `cycle - 1`) are in `active` count:
    `Schedule(cycle=4, active=(0, 1))` is active in epochs 0, 1, 4, 5, 8, 9, and so on.

    Raises `ValueError` that names every impossible setting at once.
    """

    from_epoch: int = 0
    to_epoch: int | None = None
    cycle: int | None = None
    active: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.active is not None:
            # A list, as configuration files give it, would make the schedule unhashable and mutable.
            object.__setattr__(self, "active", tuple(self.active))
        problems = self._problems()
        if problems:
            raise ValueError("this schedule is impossible: " + "; ".join(problems))

    def active_at(self, epoch: int) -> bool:
        """Whether the loss takes part in `epoch`."""
        if epoch < self.from_epoch or (self.to_epoch is not None and epoch >= self.to_epoch):
            return False
        if self.cycle is None or self.active is None:
            return True
        return (epoch - self.from_epoch) % self.cycle in self.active

    def _problems(self) -> list[str]:
        problems: list[str] = []
        if self.from_epoch < 0:
            problems.append(f"from_epoch is {self.from_epoch}, but epochs are counted from 0")
        if self.to_epoch is not None and self.to_epoch <= self.from_epoch:
            problems.append(f"to_epoch is {self.to_epoch}, which must be greater than from_epoch, {self.from_epoch}")
        if self.cycle is not None and self.cycle < 1:
            problems.append(f"cycle is {self.cycle}, but a cycle has at least one epoch")
        if (self.cycle is None) != (self.active is None):
            given, missing = ("active", "cycle") if self.cycle is None else ("cycle", "active")
            problems.append(f"{given} is given without {missing}: give both or neither")
        if self.active is not None:
            if not self.active:
                problems.append("active is empty, so the loss would never be active")
            if len(set(self.active)) < len(self.active):
                problems.append(f"active has repeated indices: {self.active}")
            outside = [i for i in self.active if i < 0 or (self.cycle is not None and i >= self.cycle)]
            if outside:
                problems.append(f"active has {outside}, outside of the cycle of {self.cycle} epochs, from 0")
        return problems
