"""Stage `overlay`: the heat maps of a volume on its B-scans as loaded.

The folder gets, for each method, its maps as NIfTI with the shape and affine of the volume as
loaded, to be opened over it in ITK-SNAP or Slicer; the maps seen from the front; and every B-scan
with the residual on top, or the score where the method rebuilds nothing. `viewer.zip` holds what
the report's viewer shows. Of a volume that was skipped it holds the cause alone, as `skipped.txt`.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from anogan.heat_scale import read_scale
from anogan.maps.enface import draw_enface, from_the_front
from anogan.maps.file import KINDS, VolumeMaps, open_maps
from anogan.maps.pictures import Heat, blend, gray_levels, heat_levels, inner_border
from anogan.maps.viewer import write_viewer
from preprocessing.errors import InputError
from preprocessing.files import atomic_folder
from preprocessing.geometry import Geometry, read_geometry
from preprocessing.native import belong_together, write_native_map
from preprocessing.skipped import read_note
from preprocessing.volume import Volume, read_volume

IDENTITY = ("volume", "patient", "eye", "split", "eye_label")


def read_maps(path: str, volume: Volume, geometry: Geometry) -> tuple[str, VolumeMaps]:
    """Return the method of a file of maps, and the maps of a volume as loaded.

    Raises InputError when it has none, or when maps, geometry and volume do not fit each other.
    """
    with open_maps(path) as file:
        if volume.volume not in file.volumes:
            raise InputError(
                f"{path}: has no maps of the volume {volume.volume}; give the file that has them, "
                "or run the stage heatmap with its flat volume"
            )
        method, maps = file.method, file[volume.volume]
    if not belong_together(maps.score.shape, geometry, volume.data.shape):
        raise InputError(
            f"{path}: its maps of {volume.volume} {maps.score.shape}, the geometry "
            f"{geometry.z_offset.shape} and the volume as loaded {volume.data.shape} do not belong "
            "together; give those of one volume, made with the same settings"
        )
    return method, maps


def lay_on_scan(
    maps: VolumeMaps, scale: dict, volume: Volume, geometry: Geometry, image: str, stem: Path
) -> dict[str, Heat]:
    """Write each map as STEM.<kind>.nii.gz over the volume file `image`; return them as heat."""
    heats = {}
    for kind in KINDS:
        flat_map = getattr(maps, kind)
        if flat_map is not None:
            native = write_native_map(flat_map, geometry, image, f"{stem}.{kind}.nii.gz")
            front = from_the_front(flat_map, 1000 * volume.spacing_mm[1])
            heats[kind] = Heat(scale[kind], heat_levels(native, scale[kind]), front)
    return heats


def draw_bscans(gray: np.ndarray, heat: Heat, marked: np.ndarray | None, stem: Path) -> None:
    """Write each B-scan (b, z, x) with its heat, and an outline of marked pixels, as a PNG."""
    stem.parent.mkdir(exist_ok=True)
    outlined = np.zeros(gray.shape, bool) if marked is None else inner_border(marked)
    for b in range(len(gray)):
        picture = Image.fromarray(blend(gray[b], heat.levels[b], outlined[b]))
        picture.save(f"{stem}-{b:03d}.png", compress_level=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--maps", nargs="+", required=True, help="heat maps, a file per method")
    parser.add_argument("--scales", nargs="+", required=True, help="scale.json of each method")
    parser.add_argument("--volume-image", required=True, help="the volume as loaded, .nii.gz")
    parser.add_argument("--geometry", required=True, help="its flat.geometry.npz")
    parser.add_argument("--viewer-method", required=True, help="method shown in the report")
    parser.add_argument("--output", required=True, help="folder")


def command(args: argparse.Namespace) -> str:
    """Draw one volume with the maps of all methods, one method in memory at a time."""
    if note := read_note(args.geometry):
        with atomic_folder(args.output) as folder:
            (folder / "skipped.txt").write_text(f"{note.cause}\n", encoding="utf-8")
        return f"{args.output}: {note.volume} was skipped"
    scales = {scale["method"]: scale for scale in map(read_scale, args.scales)}
    volume, geometry = read_volume(args.volume_image), read_geometry(args.geometry)
    gray = gray_levels(volume)
    marked = None if volume.annotation is None else volume.annotation >= 0.5
    methods = []
    with atomic_folder(args.output) as folder:
        for path in args.maps:
            method, maps = read_maps(path, volume, geometry)
            if method not in scales:
                raise InputError(f"{path}: no scale of {method} is given; add its scale.json")
            scale, stem = scales[method], folder / method
            heats = lay_on_scan(maps, scale, volume, geometry, args.volume_image, stem)
            draw_enface(volume, method, heats, marked, f"{stem}.enface.png")
            drawn = heats.get("residual", heats["score"])
            draw_bscans(gray, drawn, marked, folder / "bscans" / method)
            if method == args.viewer_method:
                facts = {name: getattr(maps, name) for name in IDENTITY} | {"method": method}
                highest = np.fmax.reduce(maps.score, axis=(1, 2))
                viewer = folder / "viewer.zip"
                write_viewer(viewer, volume, geometry, gray, heats, highest, facts)
            methods.append(method)
        if args.viewer_method not in methods:
            raise InputError(
                f"--viewer-method {args.viewer_method}: the maps are of {', '.join(methods)}; "
                "give one of them"
            )
    return f"{args.output}: {len(gray)} B-scans with the maps of {', '.join(methods)}"
