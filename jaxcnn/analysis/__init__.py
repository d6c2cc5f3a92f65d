"""Costs, tables and pictures, computed from the code and from recorded runs."""
