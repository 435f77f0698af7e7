"""Notices what has no gradient, or loses it while the run goes on: a network's outputs, a loss, a layer. Looks at
torch's graph only, never at numbers, so that nothing waits for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.paths import PATH
from orchestrator.policies import check_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from losses import Loss, PolicyEvaluation
    from orchestrator.policies import Policy

_SHOWN = 5


class GradientCheck:
    """For a learner whose policy has passed `check_gradients`: call `begin_epoch`, then `outputs` for each minibatch
    and `total` for the first.

    What is frozen has no gradient, rightly: outputs are compared with what they were while the same was frozen.
    """

    def __init__(self, policy: Policy, network: str, losses: Sequence[Loss]) -> None:
        """`losses` are all of the run, which need not be active at once."""
        self._policy = policy
        self._network = network
        self._all_losses = {loss.name for loss in losses}
        self._losses: Sequence[Loss] = ()
        self._trainable = [True for _ in policy.parameters()]
        """Which parameters required a gradient when both outputs had one last."""
        self._reached: dict[tuple[str, ...], set[str]] = {}
        """The parameters that had a gradient before, by the names of the losses that were active."""
        self._learned_from: set[str] = set()
        """The losses that had a gradient before."""
        self._epoch = 0
        self.warnings: dict[str, str] = {}
        """What the user should know, by what it is about."""

    def begin_epoch(self, epoch: int, losses: Sequence[Loss]) -> None:
        """The next minibatches are of `epoch`, from 0, and for the active `losses`."""
        self._epoch, self._losses = epoch, losses

    def outputs(self, evaluation: PolicyEvaluation) -> None:
        """Raises NetworkError where an output has lost the gradient that a loss follows."""
        if evaluation.action_parameters.requires_grad and evaluation.value.requires_grad:
            return
        if self._trainable_now() == self._trainable:
            outputs = {"action parameters": evaluation.action_parameters, "value": evaluation.value}
            missing = [role for role, output in outputs.items() if not output.requires_grad]
            check_outputs(missing, self._losses, self._network, f" from epoch {self._epoch + 1} on")

    def total(self, evaluation: PolicyEvaluation, total: Tensor, without_gradient: set[str]) -> None:
        """Look at what a minibatch's loss depends on; what it no longer depends on goes to `warnings`.

        `without_gradient` are the names of the active losses that have none.
        """
        trainable = self._trainable_now()
        if evaluation.action_parameters.requires_grad and evaluation.value.requires_grad:
            self._trainable = trainable
        parameters = {name: one for name, one in self._policy.named_parameters() if one.requires_grad}
        leaves = _leaves(total)
        reached = {name for name, parameter in parameters.items() if id(parameter) in leaves}
        names = tuple(loss.name for loss in self._losses)
        if names not in self._reached and set(names) == self._all_losses:
            self._warn_of_unused([name for name in parameters if name not in reached])
        before = self._reached.setdefault(names, reached)
        lost = [name for name in parameters if name in before and name not in reached]
        idle = [name for name in names if name in without_gradient and name in self._learned_from]
        if lost:
            self._warn(f"the parameters {_listed(lost)}", "no gradient of any loss reaches")
        elif idle and trainable == self._trainable:
            self._warn(f"the losses {', '.join(idle)}", "the policy gets no gradient from")
        self._learned_from.update(set(names) - without_gradient)

    def _warn_of_unused(self, unused: list[str]) -> None:
        if unused:
            self.warnings["gradients of unused parameters"] = (
                f"no loss ({', '.join(sorted(self._all_losses))}) has a gradient for the parameters {_listed(unused)}"
                f" of the network {self._network!r}, so that they stay as they are: add the loss that learns them to"
                f" {PATH.losses.names} (a critic for values), or freeze them with requires_grad_(False)"
            )

    def _warn(self, whom: str, what: str) -> None:
        self.warnings[f"gradients of {whom}"] = (
            f"from epoch {self._epoch + 1} on, {what} {whom}, as it did before, so that nothing is learned there: look"
            f" for detach() and no_grad() in the network {self._network!r} and in the losses; parameters that are not"
            " to be learned are frozen with requires_grad_(False)"
        )

    def _trainable_now(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._policy.parameters()]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _leaves(total: Tensor) -> set[int]:
    """Identities of the tensors that `total` has a gradient for."""
    leaves: set[int] = set()
    waiting = [total.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves
