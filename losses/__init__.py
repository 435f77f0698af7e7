"""What is learned from: losses, their composition, and the advantages they are computed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from state.lazy_names import lazy_names

if TYPE_CHECKING:
    from losses.advantage import discounted_scan as discounted_scan
    from losses.advantage import gae as gae
    from losses.callback import CALLBACKS as CALLBACKS
    from losses.callback import LearnerCallback as LearnerCallback
    from losses.callback import LossContext as LossContext
    from losses.composition import LossSet as LossSet
    from losses.composition import LossStateError as LossStateError
    from losses.gradient_reporter import GradientReporter as GradientReporter
    from losses.loss import Loss as Loss
    from losses.minibatch import Minibatch as Minibatch
    from losses.minibatch import PolicyEvaluation as PolicyEvaluation
    from losses.minibatch import Rows as Rows
    from losses.ppo import PPOActor as PPOActor
    from losses.ppo import PPOCritic as PPOCritic
    from losses.ppo import ppo_losses as ppo_losses
    from losses.prioritization import importance_weights as importance_weights
    from losses.prioritization import segment_probabilities as segment_probabilities
    from losses.schedule import Schedule as Schedule
    from losses.statistics import LossStatistics as LossStatistics
    from losses.update_epochs import UpdateEpochsTuner as UpdateEpochsTuner
    from losses.vtrace import VTraceActor as VTraceActor
    from losses.vtrace import VTraceCritic as VTraceCritic
    from losses.vtrace import VTraceTargets as VTraceTargets
    from losses.vtrace import vtrace_losses as vtrace_losses
else:
    __getattr__, __dir__ = lazy_names(__name__)
