"""Import from and export to other frameworks' checkpoints."""
