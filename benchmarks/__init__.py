"""Measurements, each a command: ``scripts/benchmark NAME``. Figures in the documentation come from here."""
