"""Playing episodes with a frozen policy. Knows no event loop."""
