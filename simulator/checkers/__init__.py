"""Judges runs, offline: a history and a spec go in, findings and a recovery anatomy come out."""
