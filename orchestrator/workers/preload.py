"""What the fork server imports once, so that each worker starts with it: see `workers.process`."""

import gymnasium  # noqa: F401
import torch  # noqa: F401

import orchestrator.collector
import orchestrator.evaluator
import orchestrator.learner
import orchestrator.workers.serve  # noqa: F401
