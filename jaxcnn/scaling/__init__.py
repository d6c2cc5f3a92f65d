"""A training step compiled for devices that are not here: its costs, and its predicted speed."""
