"""The learner: minibatches, optimizer, statistics. Knows no event loop."""
