"""The rollout: environments stepped with a policy, into experience. Knows no event loop."""
