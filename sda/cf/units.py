"""Units: those of data and observations in those of a prior, or a clear refusal.

Conversion is by cf_xarray's registry of pint, which reads units as CF has them (`m s-1`, `degC`,
`kg m-2 s-1`). Units that are equal as text need no registry.
"""

from functools import lru_cache

# Spellings that are common in files and mean something else, or nothing, to the registry.
SPELLINGS = {
    "c": "degC", "deg c": "degC", "deg_c": "degC", "degc": "degC", "°c": "degC", "celsius": "degC",
    "degree_celsius": "degC", "degrees_celsius": "degC", "degreesc": "degC", "deg k": "K",
    "degk": "K", "kelvin": "K", "degrees_kelvin": "K", "mb": "hPa", "mbar": "hPa",
    "millibar": "hPa", "millibars": "hPa", "m/s": "m s-1", "meters": "m", "metres": "m",
    "gpm": "m", "none": "1", "": "1", "-": "1", "dimensionless": "1", "0-1": "1", "unitless": "1",
}  # fmt: skip


@lru_cache(maxsize=256)
def conversion(given: str, wanted: str, what: str) -> tuple[float, float]:
    """The factor and the offset that take values from some units to others.

    Arguments:
        given, wanted: The units.
        what: What is converted, for messages.

    Returns:
        `(a, b)` with `value in wanted = a (value in given) + b`.

    Raises:
        ValueError: If a unit is unknown, or they measure different things.
    """

    given, wanted = given.strip(), wanted.strip()
    if given == wanted:
        return 1.0, 0.0
    plain = [SPELLINGS.get(unit.lower(), unit) for unit in (given, wanted)]
    if plain[0] == plain[1]:
        return 1.0, 0.0
    from cf_xarray.units import units as registry

    try:
        source, target = (registry.parse_units(unit) for unit in plain)
        zero, one = (registry.Quantity(v, source).to(target).magnitude for v in (0.0, 1.0))
    except Exception as error:  # the registry raises errors of many kinds, down to TypeError
        raise ValueError(
            f"{what} has the units {given!r}, which cannot be converted to {wanted!r}, those of "
            f"the prior: convert the values, or correct the units ({first_line(error)})"
        ) from error

    return float(one - zero), float(zero)


def first_line(error: Exception) -> str:
    """The first line of an error."""
    return next(iter(str(error).splitlines()), type(error).__name__)
