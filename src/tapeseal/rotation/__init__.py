"""Rotation of secrets: planned, journaled, verified against the target, rolled back where that fails."""

from tapeseal.rotation.consumers import acknowledge

__all__ = ["acknowledge"]
