"""Locks: one writer at a time for each store, see `dynamics.lock`."""

from dynamics.lock import Lock, Locked

__all__ = ["Lock", "Locked"]
