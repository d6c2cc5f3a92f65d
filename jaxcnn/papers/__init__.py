"""The papers' published values beside ours."""
