"""From a checkpoint to a policy that acts, without the environment that it was trained in."""

from __future__ import annotations

import difflib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from gymnasium import spaces as spaces_of

from orchestrator.checkpoints import CheckpointError, find_checkpoint
from orchestrator.checkpoints.checkpoint import not_understood
from orchestrator.checkpoints.find import as_address
from orchestrator.config.settings import TrainerConfig
from orchestrator.config.trust import check_trust
from orchestrator.deployment.loaded_policy import LoadedPolicy
from orchestrator.environments.action_mask import ActionMask, keys_of_mask
from orchestrator.environments.joint_spaces import USED
from orchestrator.environments.masks_by_type import joint_key, masked_policies
from orchestrator.environments.recorded_spaces import POLICIES, space_from_json
from orchestrator.environments.spaces import agent_action_space, agent_observation_space, without_parts
from orchestrator.policies import Spaces, build_policy
from orchestrator.policies.alone import policy_alone
from orchestrator.snapshots.recorded_settings import SPACES, read_config_of
from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from orchestrator.checkpoints import Checkpoint
    from orchestrator.environments.spaces import Space
    from orchestrator.policies import Policy


def load_policy(
    where: str | Path,
    *,
    policy: str | None = None,
    spaces: tuple[Space, Space] | None = None,
    trust_code: bool = False,
) -> LoadedPolicy:
    """The policy of a checkpoint, or of a run's newest, at a path or an address; blocks, and may download.

    Neither the environment nor any other code that the settings name is imported, but for a network of one's own: where
    `where` is an address, that needs `trust_code`. Where types of agents have policies of their own, `policy` is the
    type whose policy is wanted alone, with the spaces of its agents; without, it has the joint spaces of all. `spaces`
    are the environment's own of observations and actions, or of the agents of that type, in place of those that the
    checkpoint has recorded.

    Raises CheckpointError for what is missing or damaged, and where the weights do not fit the spaces;
    ConfigurationError as `check_trust` does and where the settings are not of this release; NetworkError for a network.
    """
    checkpoint = find_checkpoint(where)
    config = read_config_of(checkpoint)
    address = as_address(where)
    if address is not None and not trust_code:
        check_trust(TrainerConfig(policy=config.policy), address)  # nothing else of the settings is run
    if policy is not None:
        return _of_type(checkpoint, config, policy, spaces)
    if config.policy.by_type and config.action_mask is not None:
        names = ", ".join(sorted(_recorded_of_policies(checkpoint)))
        raise CheckpointError(
            f"{checkpoint.path} has policies by type of agent with action masks, each of the choices of its own agents:"
            f" no mask is one of their joint actions; name one type (policy=..., or --policy): {names}"
        )
    observation, action = _recorded(checkpoint) if spaces is None else spaces
    if isinstance(action, spaces_of.Box) and isinstance(observation, spaces_of.Dict) and USED in observation.spaces:
        raise CheckpointError(
            f"{checkpoint.path} has policies by type of agent, whose actions are Boxes of different sizes or bounds:"
            " it does not say the bounds of each, so that its actions could not be brought within them; name one type"
            " (policy=..., or --policy), or give all types one action space"
        )
    loaded, mask_of = _built(checkpoint, config, observation, action, own=spaces is not None)
    return LoadedPolicy(loaded, observation, action, config, checkpoint, mask_of)


def _of_type(
    checkpoint: Checkpoint, config: TrainerConfig, name: str, spaces: tuple[Space, Space] | None
) -> LoadedPolicy:
    """The policy of one type of agents alone."""
    if not config.policy.by_type:
        raise CheckpointError(
            f"{checkpoint.path} has no policy {name!r}: all agents have one policy; leave it out to load that"
        )
    joint = _recorded(checkpoint)
    masked: dict[str, tuple[Space, Space]] = {}
    if config.action_mask is not None:
        masked = masked_policies(config.action_mask, config.environment, _recorded_of_policies(checkpoint))
    loaded, _ = _built(checkpoint, config, *joint, own=False, masked=masked)
    if name not in loaded.names:
        near = difflib.get_close_matches(name, loaded.names, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(loaded.names)}"
        raise CheckpointError(f"{checkpoint.path} has no policy {name!r}; {hint}")
    observation, action = _recorded(checkpoint, name) if spaces is None else spaces
    seen, taken = agent_observation_space(observation, name), agent_action_space(action, name)
    mask_of = None
    if config.action_mask is not None and name in masked:
        mask_of = partial(ActionMask, config.action_mask, config.environment, seen, taken)
        seen = without_parts(seen, mask_of(1).keys)
    alone = policy_alone(loaded, name, seen, taken)
    return LoadedPolicy(alone, observation, action, config, checkpoint, mask_of, name=name)


def _built(
    checkpoint: Checkpoint,
    config: TrainerConfig,
    observation: Space,
    action: Space,
    *,
    own: bool,
    masked: Mapping[str, tuple[Space, Space]] = FrozenMapping({}),
) -> tuple[Policy, Callable[[int], ActionMask] | None]:
    """The policy for the environment's spaces, and its masks; `own` says that the spaces are the caller's. Where types
    of agents have policies of their own, `masked` are the agents' spaces of those whose agents have masks."""
    name = config.environment
    seen, taken = agent_observation_space(observation, name), agent_action_space(action, name)
    mask_of = None
    if config.policy.by_type and config.action_mask is not None:
        where = config.action_mask
        seen = without_parts(seen, [joint_key(of, key) for of in masked for key in keys_of_mask(where, masked[of][0])])
    elif config.action_mask is not None:
        mask_of = partial(ActionMask, config.action_mask, name, seen, taken)
        seen = without_parts(seen, mask_of(1).keys)
    agent = Spaces(seen, taken, masked=config.action_mask is not None)
    loaded = build_policy(config.policy, agent, config.seed, config.learning.discount)
    try:
        checkpoint.load_into(loaded)
    except CheckpointError:
        raise
    except ValueError as error:
        cure = "give those of the environment that the policy was trained in" if own else "name another checkpoint"
        raise CheckpointError(
            f"the policy of {checkpoint.path} cannot act on {observation} with {action}: {error}; {cure}"
        ) from None
    return loaded, mask_of


def _recorded_of_policies(checkpoint: Checkpoint) -> dict[str, tuple[Space, Space]]:
    """Those of the agents of each policy, of a checkpoint that has recorded spaces."""
    return {name: _recorded(checkpoint, name) for name in json.loads(checkpoint.read(SPACES))[POLICIES]}


def _recorded(checkpoint: Checkpoint, policy: str | None = None) -> tuple[Space, Space]:
    """Those of the environment, or of the agents of a policy."""
    cure = "pass those of the environment: load_policy(..., spaces=(env.observation_space, env.action_space))"
    if SPACES not in checkpoint.manifest["files"]:
        raise CheckpointError(
            f"{checkpoint.path} does not say what its policy observes and does, since an earlier release wrote it:"
            f" resume the run for one epoch, whose checkpoint will, or {cure}"
        )
    content = checkpoint.read(SPACES)
    try:
        recorded: Any = json.loads(content)
        if policy is not None and "problem" not in recorded:
            recorded = recorded[POLICIES][policy]
        if "problem" not in recorded:
            return space_from_json(recorded["observation"]), space_from_json(recorded["action"])
    except Exception as error:  # whatever other content makes gymnasium raise
        raise not_understood(checkpoint.file(SPACES), error) from error
    problem = recorded["problem"]
    raise CheckpointError(f"{checkpoint.path} could not record the spaces of its environment: {problem}; {cure}")
