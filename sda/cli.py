"""The command line: one verb for each arrow from a system to a verified posterior.

    sda simulate ──▶ train ──▶ observe ──▶ assimilate ──▶ verify, plot

Every verb is one call of the Python interface. Bad input costs one line on standard error and exit
code 2; an interrupt exits with 130, and what was finished stays. An assimilation of which some
members failed exits with 3. Set SDA_DEBUG=1 to see the traceback of an error.
"""

import os
import sys
import textwrap
from collections.abc import Sequence

from .verbs import VERBS as VERBS
from .verbs import run_verb as run_verb
from .verbs.messages import BAD_INPUT, INTERRUPTED, complain, say
from .verbs.messages import FAILED as FAILED


def usage() -> str:
    """The verbs, one line each."""

    lines = [f"  {name:11}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return (
        "usage: sda VERB key=value …\n\n"
        "Score-based data assimilation.\n\n" + "\n".join(lines) + "\n\n"
        "`sda VERB --help` shows an example, the keys and their defaults. Exit codes: 0 done,\n"
        "2 bad input, 3 done but some members failed, 130 interrupted."
    )


def manual(verb: str) -> str:
    """What a verb does, an example, its keys and its groups."""

    from .config.files import describe

    summary, _, examples = (VERBS[verb].__doc__ or "").partition("\n")
    example = textwrap.indent(textwrap.dedent(examples).strip(), "  ")
    return f"{summary}\n\nExample:\n{example}\n\n{describe(verb)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point of the command `sda`. Returns the exit code."""

    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        say(usage())
        return 0 if given else BAD_INPUT
    if given[0] in ("-V", "--version"):
        from importlib.metadata import version

        say(version("sda-torch"))
        return 0

    verb, overrides = given[0], given[1:]
    try:
        if verb not in VERBS:
            from .config import hint

            raise ValueError(
                f"unknown verb {verb!r}{hint(verb, list(VERBS))}: "
                f"expected one of {', '.join(VERBS)}"
            )
        if {"-h", "--help"} & set(overrides):
            say(manual(verb))
            return 0
        return run_verb(verb, overrides)
    except KeyboardInterrupt as error:
        note = "".join(getattr(error, "__notes__", []))
        complain(f"interrupted{': ' + note if note else ''}")
        return INTERRUPTED
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError) as error:
        if os.environ.get("SDA_DEBUG"):
            raise
        complain(explain(error))
        return BAD_INPUT
    except RuntimeError as error:
        # How torch says that an array does not fit, on any device.
        if os.environ.get("SDA_DEBUG") or "memory" not in str(error).lower():
            raise
        complain(f"out of memory: give a smaller block=… or memory=… ({str(error)[:200]})")
        return BAD_INPUT


def explain(error: BaseException) -> str:
    """An error in one line."""

    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
