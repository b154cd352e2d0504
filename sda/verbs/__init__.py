"""The verbs of the command line, each one call of the Python interface.

    sda simulate ──▶ train ──▶ observe ──▶ assimilate ──▶ verify, plot

A verb takes its composed configuration, prints what it has made, and returns an exit code; errors
are raised. What a verb needs is imported when it runs, so that a manual or an error is there at
once.
"""

from .run import VERBS as VERBS
from .run import run_verb as run_verb
