"""What the learner computes of a policy, compiled by torch.compile: `learning.compile`. One graph serves minibatches of
every size, so that a run's bits do not depend on the sizes that came before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config.paths import PATH
from orchestrator.policies.lstm import LSTM
from orchestrator.policies.tokens import TokenEncoder
from state.error import OrchestratorError
from state.user_code import described

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from losses import PolicyEvaluation
    from orchestrator.policies import Policy

_COMPILER = "C++ compiler"
_LONGEST = 500
"""Characters of what torch says of a failure, which may be whole files."""


class CompilationError(OrchestratorError, RuntimeError):
    """torch.compile can't compile the network here; the message says why, and what to do."""


def compiled_evaluate(policy: Policy) -> Callable[..., PolicyEvaluation]:
    """`policy.evaluate`, which compiles itself at the first call: for a minute, say.

    What torch can't have in a graph, such as what depends on values, it computes as it is, between graphs.
    """
    for module in policy.modules():
        if isinstance(module, LSTM | TokenEncoder):
            module.leave_uncompiled()
    # In this process, as others that help would outlive the compilation. For minutes they would save seconds.
    compiled: Any = torch.compile(policy.evaluate, dynamic=True, options={"compile_threads": 1})

    def evaluate(*arguments: Any) -> PolicyEvaluation:
        for argument in arguments:
            if isinstance(argument, dict):
                _all_but_rows_fixed(*argument.values())
            else:
                _all_but_rows_fixed(argument)
        return compiled(*arguments)

    return evaluate


def compilation_failed(network: str, device: torch.device, error: BaseException) -> CompilationError:
    """What is raised where the compilation of a `network` has failed with an error."""
    text = " ".join(described(error).partition("\n\n")[0].split())  # without torch's advice on finding out more
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    cure = f"set {PATH.learning.compile} to false"
    if _COMPILER in text:
        cure = f"install g++ or clang++ (the variable CXX names another), or {cure}"
    return CompilationError(
        f"torch.compile can't compile the network {network!r} on {device}: {text.rstrip('.')}; {cure}"
    )


def _all_but_rows_fixed(*tensors: Tensor | None) -> None:
    """Have them be compiled for any number of rows, but not of columns."""
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            for column in range(1, tensor.dim()):
                torch._dynamo.mark_static(tensor, column)  # pyright: ignore[reportPrivateUsage]
