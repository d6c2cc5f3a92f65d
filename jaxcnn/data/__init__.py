"""Data: sources with random access, their preparation, and the way from a source to batches on the device."""
