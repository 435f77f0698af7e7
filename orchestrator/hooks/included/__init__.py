"""The hooks that come along: checkpoints, evaluation, metrics, progress, traces, uploads."""
