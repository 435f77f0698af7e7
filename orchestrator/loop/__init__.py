"""The loop as the host sees it: the collect task and the learn task, policy versions, workers, control."""
