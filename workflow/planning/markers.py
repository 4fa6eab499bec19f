"""Whether markers can be looked for, and on the heat maps of which method."""

from planning.errors import PlanningError


def marker_method(config: dict, mapped: list[str], headline: str, models: list[str]) -> str | None:
    """Return the method whose heat maps markers are looked for in, None where there can be none.

    `mapped` are the methods that heat maps are drawn with, `models` those of the run. The method of
    the config, else the one that leads the report, else the first that is mapped.
    """
    wanted = config["markers"].get("method")
    if wanted and wanted not in config["heatmap"]["methods"]:
        raise PlanningError(
            f"config: markers: method is '{wanted}', but heat maps are drawn with "
            f"{', '.join(config['heatmap']['methods']) or 'no method'}; name one of these, or add "
            "it to heatmap: methods"
        )
    if not mapped or "gan" not in models:
        return None
    return wanted or (headline if headline in mapped else mapped[0])
