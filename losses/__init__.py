"""What is learned from: losses, their composition, and the advantages they are computed on."""

from __future__ import annotations

from losses.advantage import discounted_scan, gae
from losses.callback import CALLBACKS, LearnerCallback, LossContext
from losses.composition import LossSet, LossStateError
from losses.gradient_reporter import GradientReporter
from losses.loss import Loss
from losses.minibatch import Minibatch, PolicyEvaluation, Rows
from losses.ppo import PPOActor, PPOCritic, ppo_losses
from losses.prioritization import importance_weights, segment_probabilities
from losses.schedule import Schedule
from losses.statistics import LossStatistics
from losses.update_epochs import UpdateEpochsTuner
from losses.vtrace import VTraceActor, VTraceCritic, VTraceTargets, vtrace_losses

__all__ = [
    "CALLBACKS",
    "GradientReporter",
    "LearnerCallback",
    "Loss",
    "LossContext",
    "LossSet",
    "LossStateError",
    "LossStatistics",
    "Minibatch",
    "PPOActor",
    "PPOCritic",
    "PolicyEvaluation",
    "Rows",
    "Schedule",
    "UpdateEpochsTuner",
    "VTraceActor",
    "VTraceCritic",
    "VTraceTargets",
    "discounted_scan",
    "gae",
    "importance_weights",
    "ppo_losses",
    "segment_probabilities",
    "vtrace_losses",
]
