"""Rotation of secrets: planned, journaled, verified against the target, rolled back where that fails."""
