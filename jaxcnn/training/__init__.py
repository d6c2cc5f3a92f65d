"""One data-parallel training step and one visible loop."""
