"""Data sets made on the disk; the only code that loads TensorFlow."""
