"""Pictures; no numbers are computed here."""
