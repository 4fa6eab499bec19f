"""Whether the planner looks for markers, and in the heat maps of which method."""

import pytest

from planning.errors import PlanningError
from planning.markers import marker_method


@pytest.mark.parametrize(
    ("wanted", "mapped", "models", "method"),
    [
        (None, ["anogan", "pca"], ["gan"], "anogan"),
        (None, ["pca"], ["gan", "pca"], "pca"),
        ("pca", ["anogan", "pca"], ["gan"], "pca"),
        (None, [], ["gan"], None),
        (None, ["pca"], ["pca"], None),
    ],
)
def test_markers_need_heat_maps_and_a_gan(wanted, mapped, models, method):
    config = {"markers": {"method": wanted} if wanted else {}, "heatmap": {"methods": mapped}}
    assert marker_method(config, mapped, "anogan", models) == method


def test_a_method_without_heat_maps_is_refused():
    config = {"markers": {"method": "ae"}, "heatmap": {"methods": ["anogan"]}}
    with pytest.raises(PlanningError, match="drawn with anogan; name one of these"):
        marker_method(config, ["anogan"], "anogan", ["gan"])
