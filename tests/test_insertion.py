"""Lesions inserted into healthy eyes: where they go, what they change, and how they are judged."""

import argparse
import dataclasses
import sys
from collections import Counter
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from benchmarks.insertion import DRUSE_GRAY, KINDS, choose_sites, druse, ellipse, insert
from benchmarks.judgement import BOOTSTRAP, auc, evaluate, resampled
from benchmarks.truths import (
    LEAST_PX,
    PLACE,
    Eye,
    Truth,
    drusen,
    fluid,
    inserted,
    position,
    raised_rpe,
)
from preprocessing.flatten import add_options, flatten_by
from preprocessing.layers import Layers
from preprocessing.normalise import normalise
from preprocessing.phantom import make_phantom

with mock.patch.object(sys, "path", [*sys.path]):  # which a benchmark changes
    from benchmarks.detection import simplest

SHAPE, SPACING_MM = (4, 384, 160), (0.24, 0.00387, 0.022)
SEED, SITES = 1, 60


def make_eye(diseased: bool) -> Eye:
    """A flat phantom of four B-scans with its true layers."""
    volume, layers = make_phantom("eye", 1, diseased, SHAPE, SPACING_MM)
    parser = argparse.ArgumentParser()
    add_options(parser)
    layers = Layers(**layers, confidence=np.ones_like(layers["bm"]))
    return Eye(*flatten_by(normalise(volume, (1, 99)), layers, parser.parse_args([])))


@pytest.fixture(scope="module")
def eye():
    return make_eye(diseased=False)


@pytest.fixture(scope="module")
def diseased():
    return make_eye(diseased=True)


@pytest.fixture(scope="module")
def sites(eye):
    return {name: choose_sites(eye.flat, eye.geometry, name, SITES, SEED) for name in KINDS}


def window(site, image):
    """Return what the patch of a site shows of a B-scan (z, x)."""
    z, x = site.corner
    return image[z : z + 64, x : x + 64]


def before(eye, site):
    return window(site, eye.flat.data[site.bscan])


@pytest.mark.parametrize("name", KINDS)
class TestSites:
    def test_they_are_the_same_for_the_same_seed(self, eye, sites, name):
        assert len(sites[name]) == SITES
        assert choose_sites(eye.flat, eye.geometry, name, SITES, SEED) == sites[name]
        assert choose_sites(eye.flat, eye.geometry, name, SITES, SEED + 1) != sites[name]

    def test_lesions_lie_in_the_retina_and_half_of_each_in_its_patch(self, eye, sites, name):
        for site in sites[name]:
            ilm, rpe = (
                layer[site.bscan, round(site.x)] for layer in (eye.geometry.ilm, eye.geometry.rpe)
            )
            half = 0 if name == "drusen" else site.height_px / 2
            top = site.z - site.height_px if name == "drusen" else site.z - half
            assert ilm < top
            assert site.z + half <= rpe
            z = np.clip([top, top + site.height_px], site.corner[0], site.corner[0] + 64)
            x = site.x + np.array([-0.5, 0.5]) * site.width_px
            x = np.clip(x, site.corner[1], site.corner[1] + 64)
            assert np.ptp(z) * np.ptp(x) >= 0.4999 * site.height_px * site.width_px
            assert abs(site.donor - site.bscan) == 1


@pytest.mark.parametrize("name", KINDS)
class TestInsertion:
    def test_nothing_changes_outside_the_lesion(self, eye, sites, name):
        for site in sites[name][:10]:
            gray, share = insert(eye.flat, eye.geometry, name, site, 1.0)
            assert (share > 0).any()
            np.testing.assert_array_equal(gray[share == 0], before(eye, site)[share == 0])
            assert np.abs(gray).max() <= 1
            assert not np.array_equal(gray, before(eye, site))

    def test_the_sham_is_the_tissue_of_the_next_bscan(self, eye, sites, name):
        for site in sites[name][:10]:
            gray, share = insert(eye.flat, eye.geometry, name, site, 0.0)
            donor = window(site, eye.flat.data[site.donor])
            np.testing.assert_allclose(gray[share == 1], donor[share == 1], atol=1e-6)

    def test_the_controls_change_no_mean_where_the_lesion_does(self, eye, sites, name):
        def change(contrast):
            changes = []
            for site in sites[name]:
                gray, share = insert(eye.flat, eye.geometry, name, site, contrast)
                inside = share > 0.5
                changes += [(gray - before(eye, site))[inside].mean()] if inside.any() else []
            assert len(changes) > SITES / 2
            return abs(np.mean(changes))

        lesion = change(1.0)
        assert change(0.0) < 0.2 * lesion
        if name != "drusen":
            assert change(None) < 0.2 * lesion


@pytest.mark.parametrize(("name", "sign"), [("fluid", -1), ("foci", 1)])
def test_fluid_is_darker_and_a_focus_brighter_than_before(eye, sites, name, sign):
    changes = []
    for site in sites[name]:
        half, full = (
            (gray - before(eye, site))[share > 0.9].mean()
            for contrast in (0.5, 1.0)
            for gray, share in [insert(eye.flat, eye.geometry, name, site, contrast)]
            if (share > 0.9).any()
        )
        changes.append((sign * half, sign * full))
    half, full = np.transpose(changes)
    assert (full > 0).mean() > 0.9
    assert half.mean() < full.mean()


def test_a_druse_lifts_the_rpe(eye, sites):
    site = max(sites["drusen"], key=lambda site: site.height_px)
    donor = np.full(eye.flat.data.shape[1:], -0.5, np.float32)
    rpe = np.full(donor.shape[1], np.round(site.z))
    donor[int(site.z)] = 1  # a thin bright RPE
    for contrast in (0.5, 1.0):
        tissue, share = druse(donor, site, rpe, 2 * DRUSE_GRAY - 1, contrast, 3.87)
        column = int(site.x)
        lift = round(contrast * site.height_px)
        raised = tissue[int(site.z) - lift, column]
        assert raised == pytest.approx(1)
        assert share[int(site.z) - lift, column] == 1
        assert share[:, [0, -1]].max() == 0 or site.x < site.width_px


def test_an_ellipse_covers_what_its_axes_say(sites):
    for site in sites["fluid"]:
        area = ellipse((300, 300), site.__class__(**{**vars(site), "x": 150.0})).sum()
        expected = np.pi / 4 * site.height_px * site.width_px
        assert area == pytest.approx(expected, rel=0.1)


def test_fluid_is_compared_with_patches_of_the_same_bscan(diseased):
    truth = fluid("fluid", [diseased], 6, 0.01, SEED)
    assert truth.patches.shape == (len(truth.index), 64, 64)
    for rows in truth.groups:
        of_group = truth.index.iloc[rows]
        assert len(of_group["bscan"].unique()) == 1
        assert sorted(of_group["label"].unique()) == [0, 1]
    assert set(truth.index["group"]) == {f"eye/{b}" for b in truth.index["bscan"].unique()}


def test_drusen_lie_between_bruchs_membrane_and_a_raised_rpe():
    rpe, bm = np.array([10, 12, np.nan]), np.full(3, 20.0)
    raised = raised_rpe(rpe, bm, np.arange(8, 22), 0.004)  # by 40 and 32 um
    assert raised.sum(axis=0).tolist() == [10, 0, 0]
    assert np.flatnonzero(raised[:, 0]).tolist() == list(range(2, 12))


def test_nothing_is_inserted_where_the_rpe_is_raised_or_beside_it(diseased):
    layers, z = diseased.geometry, np.arange(diseased.flat.data.shape[1])
    step_mm = diseased.flat.spacing_mm[1]
    raised = raised_rpe(layers.rpe, layers.bm, z, step_mm).any(axis=1)
    assert raised.any()
    for truth in inserted(diseased, 12, SEED):
        assert len(truth.index)
        for row in truth.index.itertuples():
            nearby = raised[max(row.bscan - 1, 0) : row.bscan + 2, row.x : row.x + 64]
            assert not nearby.any()


def test_drusen_are_compared_with_patches_that_have_none(eye, diseased):
    layers, step_mm = diseased.geometry, diseased.flat.spacing_mm[1]
    for truth in drusen(diseased, eye, 20, SEED):
        assert sorted(truth.index["label"].unique()) == [0, 1]
        assert len(truth.patches) == len(truth.index)
        for row in truth.index.itertuples():
            if row.label == 0 and "healthy" in truth.name:
                continue
            z = row.z + np.arange(64) if row.label else np.arange(diseased.flat.data.shape[1])
            place = (row.bscan, slice(row.x, row.x + 64))
            pixels = raised_rpe(layers.rpe[place], layers.bm[place], z, step_mm).sum()
            assert pixels >= LEAST_PX if row.label else pixels == 0


def test_an_eye_without_drusen_has_nothing_to_compare(eye):
    flat_rpe = dataclasses.replace(eye.geometry, rpe=eye.geometry.bm)
    (truth,) = drusen(Eye(eye.flat, flat_rpe), None, 12, SEED)
    assert len(truth.index) == len(truth.patches) == 0


def test_lesions_and_their_negatives_lie_at_the_same_places(eye, diseased):
    eyes = {"eye": diseased, "healthy": Eye(eye.flat.replace(volume="healthy"), eye.geometry)}
    truths = [*drusen(diseased, eyes["healthy"], 12, SEED), fluid("f", [diseased], 6, 0.01, SEED)]
    assert len(truths) == 3
    for truth in truths:
        same = 2 if truth.name == "f" else len(PLACE)
        for rows in truth.groups:
            places = {0: Counter(), 1: Counter()}
            for row in truth.index.iloc[rows].itertuples():
                where = position(eyes[row.volume], np.array([[row.bscan, row.z, row.x]]))
                places[row.label] += Counter([tuple(where[0, :same] // PLACE[:same])])
            assert places[0] == places[1]
            assert places[0]


def test_a_position_is_a_height_and_the_way_from_the_centre(eye):
    bscans, _, columns = eye.flat.data.shape
    step_b, _, step_x = eye.flat.spacing_mm
    corners = np.array([[0, 10, columns // 2 - 32], [bscans - 1, 20, 0]])
    height, distance, along_x, along_y = position(eye, corners).T
    assert height[0] - height[1] == 10
    half, aside = (bscans - 1) / 2 * step_b, (columns / 2 - 32) * step_x
    assert along_y == pytest.approx([-half, half])
    assert along_x == pytest.approx([0, -aside], abs=step_x)
    assert distance == pytest.approx(np.hypot(along_x, along_y))


def test_the_simplest_scores_are_place_and_gray_value(diseased):
    (truth,) = drusen(diseased, None, 12, SEED)
    *places, gray = simplest(truth, {"eye": diseased}).values()
    corners = truth.index[["bscan", "z", "x"]].to_numpy()
    np.testing.assert_array_equal(np.column_stack(places), position(diseased, corners))
    assert gray == pytest.approx(truth.patches.astype(float).mean(axis=(1, 2)), abs=1e-5)


@pytest.fixture
def truth():
    """Two groups: three patches of B-scan 0, four of the B-scans 1 and 2."""
    index = pd.DataFrame(
        {
            "volume": ["a"] * 3 + ["b"] * 4,
            "bscan": [0, 0, 0, 1, 1, 2, 2],
            "label": [1, 1, 0, 1, 0, 0, 1],
            "group": ["a"] * 3 + ["b"] * 4,
        }
    )
    return Truth("made up", np.zeros((7, 64, 64)), index)


class TestJudgement:
    scores = np.array([3.0, 1, 2, 11, 10, 12, 12])

    def test_positives_are_compared_with_negatives_of_their_group(self, truth):
        # 3 > 2, 1 < 2; 11 > 10, 11 < 12, 12 > 10, 12 = 12
        assert auc(truth, self.scores, np.ones((1, 7))) == pytest.approx((1 + 2.5) / (2 + 4))

    def test_a_patch_counts_as_often_as_its_weight_says(self, truth):
        only_positives = truth.index["label"].to_numpy()
        weights = np.array([[2.0, 1, 1, 0, 1, 0, 3], only_positives])
        # twice 3 > 2, 1 < 2; three times 12 > 10
        expected = [(2 + 3) / (3 + 3), np.nan]
        np.testing.assert_allclose(auc(truth, self.scores, weights), expected)

    def test_bscans_are_drawn_as_a_whole(self, truth):
        weights = resampled(truth, SEED)
        assert weights.shape == (1 + BOOTSTRAP, 7)
        assert (weights[0] == 1).all()
        for rows in ([0, 1, 2], [3, 4], [5, 6]):
            assert (weights[:, rows] == weights[:, rows[:1]]).all()
        assert (weights[:, 3] + weights[:, 5] == 2).all()
        assert len(np.unique(weights[:, 3])) == 3
        assert np.array_equal(weights, resampled(truth, SEED))

    def test_a_score_is_held_to_the_best_of_all_scores_of_the_baselines(self, truth):
        own, half, none = self.scores, -self.scores, np.zeros(7)
        scores = {"r_anogan": own, "r_anogan_L2": half, "pca": none, "pca_R": own, "pca_S": half}
        scores |= {"ae": half, "ae_S": none, "acae": half}
        rows = {row["score"]: row for row in evaluate(truth, scores, SEED)}
        row = rows["r_anogan"]
        assert (row["best_baseline"], row["best_restored"]) == ("pca_R", "ae_S")
        assert row["difference"] == row["difference_low"] == row["difference_high"] == 0
        assert row["restored_difference"] == pytest.approx(3.5 / 6 - 0.5)
        assert row["restored_difference_low"] < row["restored_difference_high"]
        assert row["ci_low"] <= row["auc"] <= row["ci_high"]
        assert (row["positive"], row["negative"]) == (4, 3)
