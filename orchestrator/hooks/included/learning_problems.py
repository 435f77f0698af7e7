"""Is it learning? What an epoch's statistics say when it is not, with the likely cause and the setting to change.

Pure logic over a sequence of numbers. docs/metrics.md lists the problems. The limits were chosen so that runs that
learn CartPole, Acrobot, LunarLander, HalfCheetah, Pendulum, MountainCarContinuous and the memory task stay within them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from losses.actor import default_entropy_coefficient
from orchestrator.config.paths import PATH
from orchestrator.hooks.included.learning_returns import DOUBTFUL, SURE, Returns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.hooks.hook import HookResult
    from state.trainer_state import TrainerState

RESULT, VERDICT = "learning_problems", "learning"
"""Names of results in `state.results`: the texts of the problems that there are, by kind; a text whether it learns."""
KINDS = (
    "entropy",
    "policy_change",
    "value_loss",
    "explained_variance",
    "gradient_norm",
    "observations",
    "return",
    "episodes",
)
"""Names of the problems, `warnings/<kind>` in the metrics."""
OF_THE_RUN = ("gradient_norm", "observations", "episodes")
"""Those that policies of types of agents have together; the others each has for itself."""

RECOVERY = 10
"""Epochs without a sign of a problem after which it is over, and may be reported again."""
ENTROPY_LEFT = 0.02
"""Share of the first entropy of discrete actions below which hardly anything is tried any more."""
ENTROPY_LOST = 3.0
"""Fall of a continuous entropy in units of the first: a standard deviation below 2 % of what it was."""
KL_LIMIT, CLIP_LIMIT = 0.3, 0.6
"""approx_kl in nats, and clip_fraction, above which an epoch has moved the policy too far to trust its batch."""
VALUE_LOSS_GROWTH = 100.0
"""Growth of the value loss, with values that explain nothing. Alone it means little: returns grow as well."""
VARIANCE_LIMIT = -1.0
"""Explained variance: the values are twice as far from the returns as a constant."""
GRADIENT_LIMIT = 200.0
"""Norm of the gradient in units of the largest that is let through."""
PART_OF_RUN, ENOUGH_STEPS, ENOUGH_EPOCHS = 0.75, 2_000_000, 20
"""How much of a run, and how many agent steps, may pass without progress, whichever comes first, but no fewer than
these epochs. (A good run of Acrobot has its first success after a third to a half of its steps.)"""
LONG_EPISODE = 10_000
"""Agent steps of one environment within which some episode should have ended."""
_PATIENCE = {
    "entropy": 5,
    "policy_change": 3,
    "value_loss": 5,
    "explained_variance": 10,
    "gradient_norm": 20,
    "observations": 20,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is known of an epoch. None, and numbers that are not finite: unknown."""

    agent_step: int
    rows: int | None = None
    """Agents of all environments (None: one for each)."""
    returns: Sequence[float] = ()
    """Of the episodes that ended in the epoch."""
    entropy: float | None = None
    approx_kl: float | None = None
    clip_fraction: float | None = None
    value_loss: float | None = None
    explained_variance: float | None = None
    gradient_norm: float | None = None
    one_observation: bool = False
    """Whether nothing else has been observed so far, by any agent in any step."""
    continuous: bool = False
    """Whether actions are numbers, whose entropy has no least value."""
    competing: bool = False
    """Whether returns are gained from other agents that learn too, and need not become better."""


class ProblemDetector:
    """Finds problems in the readings of successive epochs of a run with the settings `config`.

    `fresh` says that the first episodes are those of an untrained policy, with which later ones are compared. Problems
    of other `kinds` are not looked for; the readings are those of a `policy`, where types of agents have their own.
    """

    def __init__(
        self, config: TrainerConfig, *, fresh: bool = True, kinds: Sequence[str] = KINDS, policy: str = ""
    ) -> None:
        self._config = config
        self._fresh = fresh
        self._kinds = kinds
        self._policy = policy
        self._alarms = {kind: _Alarm(_PATIENCE.get(kind, 1)) for kind in KINDS}
        self._returns = Returns(fresh)
        self._epochs = 0
        self._continuous = False
        self._first_entropy: float | None = None
        self._first_value_losses: list[float] = []
        self.current: dict[str, str] = {}
        """The problems that there are now, by kind."""

    def memory(self) -> dict[str, Any]:
        """All that what it says next depends on, as plain data."""
        return {
            "fresh": self._fresh,
            "epochs": self._epochs,
            "first_entropy": self._first_entropy,
            "first_value_losses": list(self._first_value_losses),
            "current": dict(self.current),
            "alarms": {kind: [alarm.signs, alarm.without, alarm.active] for kind, alarm in self._alarms.items()},
            "returns": self._returns.memory(),
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from a `memory` of a detector for the same run."""
        self._fresh, self._epochs = memory["fresh"], memory["epochs"]
        self._first_entropy = memory["first_entropy"]
        self._first_value_losses = list(memory["first_value_losses"])
        self.current = dict(memory["current"])
        for kind, (signs, without, active) in memory["alarms"].items():
            if kind in self._alarms:
                self._alarms[kind] = _Alarm(_PATIENCE.get(kind, 1), signs, without, active)
        self._returns = Returns(self._fresh)
        self._returns.recall(memory["returns"])

    def observe(self, reading: Reading) -> Mapping[str, str]:
        """The problems that this epoch has brought to light, by kind: what is seen, the likely cause, the cure."""
        self._epochs += 1
        self._returns.add(reading.returns)
        self._continuous = reading.continuous
        new: dict[str, str] = {}
        for kind, text in self._signs(reading).items():
            if kind not in self._kinds:
                continue
            alarm = self._alarms[kind]
            if alarm.update(text is not None) and text is not None:
                new[kind] = self.current[kind] = text
            elif not alarm.active:
                self.current.pop(kind, None)
        return new

    @property
    def verdict(self) -> str:
        """Whether it learns, in a few words."""
        returns = self._returns
        if not returns.known:
            return "too early to tell"
        if returns.good:
            return "better than at the start" if self._fresh else "as good as before"
        return "fallen back" if returns.has_improved or not self._fresh else "no better than at the start"

    def _signs(self, reading: Reading) -> dict[str, str | None]:
        """For each kind about which the epoch says something: the problem, or None if there is no sign of it.

        While the return is far above the first episodes', nothing else counts as a problem: a policy that has learned
        its task may well be sure of its actions, and its values explain little where all returns are alike.
        """
        signs = {
            "entropy": self._entropy(reading),
            "policy_change": self._policy_change(reading),
            "value_loss": self._value_loss(reading),
            "explained_variance": self._explained_variance(reading),
            "gradient_norm": self._gradient_norm(reading),
            "observations": self._observations(reading),
        }
        known = {kind: text or None for kind, text in signs.items() if text is not None}
        if self._returns.good:
            known = dict.fromkeys(known)
        return known | {"return": self._stuck_return(reading), "episodes": self._no_episodes(reading)}

    # Each: None where nothing is known, an empty text where all is well.

    def _entropy(self, reading: Reading) -> str | None:
        entropy = _finite(reading.entropy)
        if entropy is None:
            return None
        if self._first_entropy is None:
            self._first_entropy = entropy
        first = self._first_entropy
        left = (1.0 - ENTROPY_LOST) * first if reading.continuous else ENTROPY_LEFT * first
        if first <= 0 or entropy >= left:
            return ""
        cures = [self._lower_rate()]
        setting, coefficient = self._entropy_coefficient()
        if coefficient < 0.01:
            cures.append(f"set {setting} to 0.01")
        cures += self._fewer_updates()
        return (
            f"the policy has stopped exploring before its return is good: its entropy has fallen from {first:.3g} to "
            f"{entropy:.3g} nats. The likely cause is updates that are too large: {_either(cures)}"
        )

    def _policy_change(self, reading: Reading) -> str | None:
        kl, clipped = _finite(reading.approx_kl), _finite(reading.clip_fraction)
        if kl is None and clipped is None:
            return None
        if (kl or 0.0) <= KL_LIMIT and (clipped or 0.0) <= CLIP_LIMIT:
            return ""
        seen = [] if kl is None else [f"approx_kl is {kl:.3g} nats (usual: 0.001 to 0.05)"]
        if clipped is not None:
            seen.append(f"{clipped:.0%} of the steps are outside the clipping range")
        cures = [self._lower_rate(), *self._fewer_updates()]
        if self._config.losses.target_kl is None:
            cures.append(f"set {PATH.losses.target_kl} to 0.02")
        return (
            f"each epoch changes the policy too much for it to learn from its experience: {' and '.join(seen)}. "
            f"The likely cause is updates that are too large: {_either(cures)}"
        )

    def _value_loss(self, reading: Reading) -> str | None:
        loss, explained = _finite(reading.value_loss), _finite(reading.explained_variance)
        if loss is None:
            return None
        if len(self._first_value_losses) < 5:
            self._first_value_losses.append(loss)
            return ""
        first = sorted(self._first_value_losses)[2]
        if loss <= VALUE_LOSS_GROWTH * first or (explained is not None and explained >= 0):
            return ""
        return (
            f"the value loss is growing without limit: from {first:.3g} to {loss:.3g}, and the values explain nothing "
            f"of the returns. The likely cause is a step size that is too large: {_either([self._lower_rate()])}"
            f"{self._scale_rewards('; if rewards are large, ')}"
        )

    def _explained_variance(self, reading: Reading) -> str | None:
        explained = _finite(reading.explained_variance)
        if explained is None:
            return None
        if explained >= VARIANCE_LIMIT or self._returns.all_alike:  # the share of a variance that there is not
            return ""
        return (
            f"the values are worse than a constant: the explained variance has been below {VARIANCE_LIMIT:g} for "
            f"{_PATIENCE['explained_variance']} epochs, and is {explained:.3g}. The likely cause is a value function "
            f"that is pulled about by updates that are too large: {_either([self._lower_rate()])}"
            f"{self._scale_rewards('; if rewards are large, ')}"
        )

    def _gradient_norm(self, reading: Reading) -> str | None:
        norm, limit = _finite(reading.gradient_norm), self._config.learning.max_grad_norm
        if norm is None or not math.isfinite(limit):
            return None
        if norm <= GRADIENT_LIMIT * limit:
            return ""
        cure = self._scale_rewards("") or f"set {PATH.losses.value_coefficient} to a tenth of what it is"
        return (
            f"hardly anything is left of the policy's gradient: with a norm of {norm:.3g} it has been clipped to "
            f"{PATH.learning.max_grad_norm} = {limit:g} for {_PATIENCE['gradient_norm']} epochs. The likely cause is "
            f"the value loss of large rewards: {cure}"
        )

    def _observations(self, reading: Reading) -> str | None:
        if not reading.one_observation:
            return ""
        return (
            f"all observations of the first {_PATIENCE['observations']} epochs are the same, so that the policy cannot "
            "tell one situation from another: check what the environment and its wrappers return, unless the task has "
            "one situation only"
        )

    def _stuck_return(self, reading: Reading) -> str | None:
        returns = self._returns
        if not self._fresh or not self._late(reading) or not returns.known or returns.gain > DOUBTFUL:
            return None
        if reading.competing:
            return None
        first, recent = returns.first_mean, returns.recent_mean
        what = "has not moved" if abs(returns.gain) <= SURE else "is worse than at the start"
        if returns.has_improved:
            what = "has fallen back to what it was at the start"
        exploring, rate = self._more_exploration(), self._lower_rate()
        if returns.all_alike:
            causes = (
                "Every episode has the same return, so there is nothing to learn from: check that the environment's "
                f"rewards depend on what is done; if success is only rare, explore more: {exploring}"
            )
        elif returns.has_improved or returns.gain < -SURE:
            cures = _either([rate, *self._normalize(), exploring])
            causes = f"The likely cause is updates that are too large, or too little exploration: {cures}"
        else:
            cures = _either([exploring, *self._normalize(), rate])
            causes = (
                f"The likely cause is too little exploration, unsuitable scales, or a wrong step size: {cures}; or "
                "rewards that do not depend on what is done, or that observations do not tell of: check the environment"
            )
        return (
            f"the return {what}: {recent:.4g} over the last {len(returns.recent)} episodes, {first:.4g} in the first "
            f"{returns.first_count}, after {reading.agent_step:,} agent steps. {causes}"
        )

    def _no_episodes(self, reading: Reading) -> str | None:
        steps = reading.agent_step
        each = steps // (reading.rows or self._config.collection.num_environments)
        if not self._fresh or self._returns.any or not (self._late(reading) or each >= LONG_EPISODE):
            return None
        scaled = f", which {PATH.policy.normalize_rewards} scales" if self._config.policy.normalize_rewards else ""
        return (
            f"no episode has ended yet after {steps:,} agent steps ({each:,} of each environment), so no return is "
            f"known. Set {PATH.max_episode_steps}, for example to {max(1, each // 4):,}, or train for longer "
            f"({PATH.total_agent_steps}); if the task has no end, evaluate it by its rewards "
            f"(experience/reward{scaled})"
        )

    def _late(self, reading: Reading) -> bool:
        late = min(PART_OF_RUN * self._config.total_agent_steps, ENOUGH_STEPS)
        return reading.agent_step >= late and self._epochs >= ENOUGH_EPOCHS

    def _lower_rate(self) -> str:
        rate = self._config.learning.learning_rate
        return f"set {PATH.learning.learning_rate} to {min(rate / 3, 3e-4):.2g} (now {rate:g})"

    def _fewer_updates(self) -> list[str]:
        passes = self._config.learning.update_epochs
        return [f"set {PATH.learning.update_epochs} to 4 (now {passes})"] if passes > 10 else []

    def _scale_rewards(self, before: str) -> str:
        return "" if self._config.policy.normalize_rewards else f"{before}set {PATH.policy.normalize_rewards} to true"

    def _more_exploration(self) -> str:
        setting, coefficient = self._entropy_coefficient()
        value = 0.01 if coefficient < 0.01 else 3 * coefficient
        return f"set {setting} to {value:.2g} (now {coefficient:g})"

    def _entropy_coefficient(self) -> tuple[str, float]:
        """The setting that holds for the policy, and its value."""
        for index, one in enumerate(self._config.policy.by_type):
            if one.type == self._policy and one.entropy_coefficient is not None:
                return str(PATH.policy.by_type[index].entropy_coefficient), one.entropy_coefficient
        configured = self._config.losses.entropy_coefficient
        weight = default_entropy_coefficient(continuous=self._continuous) if configured is None else configured
        return str(PATH.losses.entropy_coefficient), weight

    def _normalize(self) -> list[str]:
        policy = self._config.policy
        scales = ((PATH.policy.normalize_observations, policy.normalize_observations),)
        scales += ((PATH.policy.normalize_rewards, policy.normalize_rewards),)
        return [f"set {path} to true" for path, on in scales if not on]


@dataclass(slots=True)
class _Alarm:
    """Raised after `patience` epochs in a row with a sign, over after `RECOVERY` without one."""

    patience: int
    signs: int = 0
    without: int = 0
    active: bool = False

    def update(self, sign: bool) -> bool:
        """Whether it is raised now."""
        self.signs = self.signs + 1 if sign else 0
        self.without = 0 if sign else self.without + 1
        if self.without >= RECOVERY:
            self.active = False
        raised = not self.active and self.signs >= self.patience
        self.active = self.active or raised
        return raised


def verdict_of(state: TrainerState) -> str | None:
    """Whether the run learns, as a state's results tell; None where they do not."""
    result = cast("HookResult | None", (state.results or {}).get(VERDICT))
    return None if result is None else cast("str", result.value)


def problems_of(state: TrainerState) -> Mapping[str, str] | None:
    """The problems that a state's results tell of; None where there never were any."""
    result = cast("HookResult | None", (state.results or {}).get(RESULT))
    return None if result is None else cast("Mapping[str, str]", result.value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _either(cures: Sequence[str]) -> str:
    return ", or ".join(cures)
