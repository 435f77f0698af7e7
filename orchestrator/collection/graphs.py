"""Steps of a policy that its device repeats: `collection.graphs`. For as few observations as a collector has at once,
a GPU is told the operations of a network more slowly than it does them; recorded once (`replays.py`), a step is one
launch.

A recording stays valid for every version of the policy: reading one is a copy into the memory where its weights are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from orchestrator.config.paths import PATH
from orchestrator.policies.capturable import why_network_not_capturable
from orchestrator.policies.capture import capture_on
from orchestrator.policies.replays import Repeated, Replays

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from orchestrator.config.settings import CollectionConfig
    from orchestrator.policies.acting import ActingPolicy, Decision
    from orchestrator.policies.capture import Capture
    from orchestrator.policies.network import Observation


def graphs_for(config: CollectionConfig, acting: ActingPolicy) -> ActingGraphs | None:
    """Those of a policy that acts; None where the settings want none. Raises GraphsError where they do, and its device
    has none."""
    settings = PATH.collection.graphs, PATH.collection.device
    capture = capture_on(acting.device, config.graphs, *settings, "the acting policy's")
    return None if capture is None else ActingGraphs(capture, acting)


class ActingGraphs:
    """Made once by a collector, for the policy that acts, with how its device records (`capture`).

    What can't be recorded is done operation by operation, as without graphs, and `warnings` say why.
    """

    def __init__(self, capture: Capture, acting: ActingPolicy) -> None:
        self._acting = acting
        self._replays = Replays(capture, PATH.collection.graphs, "collectors", "a step of the policy")
        self.warnings = self._replays.warnings
        """What the user should know, by what it is about."""
        self._groups: dict[int, _Group] = {}
        self._replayed = 0
        policy = acting.policy
        reason = why_network_not_capturable(policy.network, "action_parameters" if policy.separate else "forward")
        if reason:
            self._replays.give_up(reason)

    def decide(
        self,
        observation: Observation,
        episode_start: Tensor,
        action_mask: Tensor | None,
        rows: slice | None,
        noise: Tensor,
    ) -> Decision:
        """As `ActingPolicy.decide`, which is always called with the same rows in turn. What the action comes from is
        overwritten when the same rows decide next."""
        if not self._replays.works:
            return self._acting.decide(observation, episode_start, action_mask, rows, noise)
        first_row = 0 if rows is None else rows.start
        group = self._groups.get(first_row)
        if group is None:
            group = _Group(self._acting, observation, episode_start, action_mask, rows, noise)
            self._groups[first_row] = group
        group.put(observation, episode_start, action_mask, noise)
        self._replayed += self._replays.run(group, group, group.decide)
        return group.decision()

    def take_replayed(self) -> dict[str, list[float]]:
        """As a statistic of a rollout: how many steps have been since the last call, a step of each group as one."""
        replayed, self._replayed = self._replayed, 0
        return {"replayed_steps": [float(replayed)]}


class _Group(Repeated):
    """The memory on the device where the steps of some rows are computed, and what they change."""

    def __init__(
        self,
        acting: ActingPolicy,
        observation: Observation,
        episode_start: Tensor,
        action_mask: Tensor | None,
        rows: slice | None,
        noise: Tensor,
    ) -> None:
        super().__init__()
        self._acting, self._rows = acting, rows

        def there(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device=acting.device)

        self._observation: Observation = (
            {key: there(part) for key, part in observation.items()}
            if isinstance(observation, dict)
            else there(observation)
        )
        # Without memory, nobody looks at it.
        self._episode_start = episode_start if acting.state is None else there(episode_start)
        self._action_mask = None if action_mask is None else there(action_mask)
        self._noise = there(noise)
        self._decision: Decision | None = None

    def put(self, observation: Observation, episode_start: Tensor, action_mask: Tensor | None, noise: Tensor) -> None:
        """Bring a step's inputs to where they are recorded to be; from page-locked memory, without waiting."""
        if isinstance(observation, dict):
            assert isinstance(self._observation, dict)
            for key, own in self._observation.items():
                own.copy_(observation[key], non_blocking=True)
        else:
            assert isinstance(self._observation, torch.Tensor)
            self._observation.copy_(observation, non_blocking=True)
        if self._acting.state is not None:
            self._episode_start.copy_(episode_start, non_blocking=True)
        if self._action_mask is not None and action_mask is not None:
            self._action_mask.copy_(action_mask, non_blocking=True)
        self._noise.copy_(noise)

    def decide(self) -> None:
        """The step, to where the results of each are."""
        found = self._acting.decide(self._observation, self._episode_start, self._action_mask, self._rows, self._noise)
        if self._decision is None:
            self._decision = found.copied()
        else:
            self._decision.take(found)

    def decision(self) -> Decision:
        """What came of it. The action is a copy, since a rollout keeps it."""
        assert self._decision is not None
        return self._decision._replace(action=self._decision.action.clone())

    # As `Effects`.

    def tensors(self) -> list[Tensor]:
        observation = self._observation
        # A network may change what it is given.
        inputs = list(observation.values()) if isinstance(observation, dict) else [observation]
        return [*inputs, *self._results()]

    def numbers(self) -> list[Tensor]:
        return [tensor for tensor in self._results() if tensor.is_floating_point()]

    def on_host(self) -> None:
        """Nothing is changed there."""

    def set_on_host(self, known: None) -> None: ...

    def on_host_again(self, before: None) -> Callable[[], None]:
        return _nothing

    def _results(self) -> list[Tensor]:
        assert self._decision is not None
        return [tensor for tensor in (*self._decision, self._acting.state) if tensor is not None]


def _nothing() -> None: ...
