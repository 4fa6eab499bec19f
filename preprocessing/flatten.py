"""Stage `flatten`: the retina cut out and laid flat on Bruch's membrane.

Mode `bm` moves every column by whole pixels: fractions would change the noise texture from column
to column, which a GAN can learn. Mode `both` also brings the ILM to a fixed row ("adjust for
variations in orientation, shape and thickness", Schlegl et al. 2017); it hides oedema and warps
speckle, but is what the paper did. Flattening to BM, not to the RPE, leaves a PED visible.
"""

import argparse

import numpy as np

from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, geometry_path, write_geometry
from preprocessing.layers import Layers, read_layers
from preprocessing.volume import Volume, read_volume, write_volume


def flat_geometry(
    layers: Layers, volume: Volume, mode: str, above_um: float, thickness_um: float
) -> Geometry:
    """Return the geometry that lays BM on the row `above_um` below the top of the flat volume.

    In mode `both` the ILM comes to lie `thickness_um` above it.
    """
    pixel_um = 1000 * volume.spacing_mm[1]
    bm_row = round(above_um / pixel_um)
    if mode == "bm":
        z_offset = np.rint(layers.bm) - bm_row
        z_scale = np.where(np.isnan(z_offset), np.nan, 1.0)
    else:
        z_scale = (layers.bm - layers.ilm) / (thickness_um / pixel_um)
        z_scale = np.where(z_scale > 0, z_scale, np.nan)
        z_offset = layers.bm - bm_row * z_scale
    rows = {name: (getattr(layers, name) - z_offset) / z_scale for name in ("ilm", "rpe", "bm")}
    return Geometry(
        z_offset=z_offset.astype(np.float32),
        z_scale=z_scale.astype(np.float32),
        x_factor=volume.native_shape[2] / volume.data.shape[2],
        **{name: row.astype(np.float32) for name, row in rows.items()},
    )


def level_geometry(layers: Layers, volume: Volume) -> Geometry:
    """Return the geometry of a volume that is flat already: every pixel stays where it is."""
    return Geometry(
        z_offset=np.zeros_like(layers.bm),
        z_scale=np.ones_like(layers.bm),
        x_factor=volume.native_shape[2] / volume.data.shape[2],
        ilm=layers.ilm,
        rpe=layers.rpe,
        bm=layers.bm,
    )


def flatten(volume: Volume, geometry: Geometry, n_rows: int) -> Volume:
    """Return the flat volume (b, n_rows, x).

    What lies outside the B-scan, and columns without layers, are invalid. Whole-pixel offsets copy
    gray values unchanged, others interpolate them linearly.
    """
    rows = np.arange(n_rows, dtype=np.float32)[None, :, None]
    z = geometry.z_offset[:, None, :] + geometry.z_scale[:, None, :] * rows
    inside = (z >= 0) & (z <= volume.data.shape[1] - 1)  # False where NaN
    z = np.where(inside, z, 0)
    lower = np.floor(z).astype(np.intp)
    upper = np.minimum(lower + 1, volume.data.shape[1] - 1)
    part = (z - lower).astype(np.float32)

    def take(values: np.ndarray) -> np.ndarray:
        below = np.take_along_axis(values, lower, axis=1)
        if not part.any():
            return below
        return below + part * (np.take_along_axis(values, upper, axis=1) - below)

    valid = inside & (take(volume.valid.astype(np.float32)) >= 1)
    annotation = None
    if volume.annotation is not None:
        annotation = np.where(inside, take(volume.annotation), np.float32(np.nan))
    data = np.where(valid, take(volume.data), np.float32(-1))
    vendor_layers = {
        name: (layer - geometry.z_offset) / geometry.z_scale
        for name, layer in volume.vendor_layers.items()
    }
    return volume.replace(
        data=data, valid=valid, annotation=annotation, vendor_layers=vendor_layers
    )


def flatten_by(volume: Volume, layers: Layers, args: argparse.Namespace) -> tuple[Volume, Geometry]:
    """Return the flat volume and its geometry by the options of `add_options`.

    A volume that was flat when it was loaded stays as it is.
    """
    if volume.parameters.get("load", {}).get("already") == "flat":
        return volume, level_geometry(layers, volume)
    geometry = flat_geometry(layers, volume, args.mode, args.above_um, args.thickness_um)
    n_rows = round((args.above_um + args.below_um) / (1000 * volume.spacing_mm[1]))
    used = {name: getattr(args, name) for name in ("mode", "above_um", "below_um", "thickness_um")}
    flat = flatten(volume, geometry, n_rows)
    return flat.replace(parameters={**flat.parameters, "flatten": used}), geometry


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what is made level and kept."""
    parser.add_argument("--mode", choices=["bm", "both"], default="bm", help="what is made level")
    parser.add_argument("--above-um", type=float, default=650, help="kept above BM")
    parser.add_argument("--below-um", type=float, default=150, help="kept below BM")
    parser.add_argument("--thickness-um", type=float, default=320, help="retina in mode both")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="resampled volume, .nii.gz")
    parser.add_argument("--layers", required=True, help="layers.npz of that volume")
    add_options(parser)
    parser.add_argument("--output", required=True, help="flat volume, .nii.gz")


def command(args: argparse.Namespace) -> str:
    """Flatten one volume; the geometry goes beside it as .geometry.npz."""
    volume = read_volume(args.input)
    layers = read_layers(args.layers)
    if layers.bm.shape != (volume.data.shape[0], volume.data.shape[2]):
        raise InputError(
            f"{args.layers}: layers of shape {layers.bm.shape} do not fit {args.input}; "
            "make them again with the rule prepare"
        )
    flat, geometry = flatten_by(volume, layers, args)
    write_geometry(geometry, geometry_path(args.output))
    write_volume(flat, args.output)
    return summary(flat)


def summary(flat: Volume) -> str:
    """Return one line about a flat volume."""
    return f"{flat.volume}: {flat.data.shape[1]} rows, {flat.valid.mean():.1%} of the pixels valid"
