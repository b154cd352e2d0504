"""Puts this folder on the import path: the tests of all packages share `oracles`."""
