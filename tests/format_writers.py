"""Writes one known pattern in every format, for the tests of the readers."""

import json
import zlib

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

from preprocessing.volume import write_nifti

SHAPE = (5, 70, 40)
B, Z, X = np.indices(SHAPE)
PATTERN = ((97 * B + 13 * Z + 5 * X) % 251 + 1).astype(np.uint8)  # equal in no other order
SPACING = (0.12, 0.004, 0.012)
UNKNOWN = (np.nan, np.nan, np.nan)
MATLAB = np.moveaxis(PATTERN, 0, 2)  # (z, x, b)


def nifti(folder, name="v.nii.gz", gray=PATTERN):
    write_nifti(gray, folder / name, np.diag([*SPACING[::-1], 1]))
    return folder / name


def nifti_plain(folder):
    return nifti(folder, "v.nii")


def nifti_in_um(folder):
    import nibabel as nib

    image = nib.Nifti2Image(PATTERN.T.astype(np.float32), np.diag([12.0, 4.0, 120.0, 1]))
    image.header.set_xyzt_units("micron")
    image.to_filename(folder / "v.nii.gz")
    return folder / "v.nii.gz"


def tiff_stack(folder, gray=PATTERN, name="v.tif", **options):
    first, *rest = (Image.fromarray(bscan) for bscan in gray)
    first.save(folder / name, save_all=True, append_images=rest, **options)
    return folder / name


def tiff_lzw_as_rgb(folder):
    return tiff_stack(folder, np.repeat(PATTERN[..., None], 3, 3), compression="tiff_lzw")


def tiff_float(folder):
    return tiff_stack(folder, PATTERN / np.float32(255))


def image_folder(folder, suffix=".png", first=8, gray=PATTERN):
    folder = folder / "scans"
    folder.mkdir()
    for b, bscan in enumerate(gray):
        Image.fromarray(bscan).save(folder / f"eye_scan{first + b}{suffix}")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / ".hidden.png").write_bytes(b"x")
    return folder


def bmp_folder(folder):
    return image_folder(folder, ".bmp")


def metaimage(folder, name="v.mhd", local=False, packed=False, gray=PATTERN):
    content = gray.tobytes()
    content = zlib.compress(content) if packed else content
    data_file = "LOCAL" if local else "v.zraw" if packed else "v.raw"
    kind = {"u1": "MET_UCHAR", "u2": "MET_USHORT", "i2": "MET_SHORT", "f4": "MET_FLOAT"}
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\n"
        f"BinaryDataByteOrderMSB = {gray.dtype.byteorder == '>'}\nCompressedData = {packed}\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 0.012 0.004 0.12\n"
        f"DimSize = {' '.join(map(str, gray.shape[::-1]))}\n"
        f"ElementType = {kind[gray.dtype.str[1:]]}\nElementDataFile = {data_file}\n"
    ).encode()
    (folder / name).write_bytes(header + (content if local else b""))
    if not local:
        (folder / data_file).write_bytes(content)
    return folder / name


def metaimage_packed(folder):
    return metaimage(folder, packed=True)


def metaimage_one_file(folder):
    return metaimage(folder, "v.mha", local=True, gray=PATTERN.astype(">f4"))


def chiu():
    n_b = SHAPE[0]
    layers = np.arange(8.0)[:, None, None] + np.arange(n_b) + np.ones((1, SHAPE[2], 1))
    fluid = np.zeros(MATLAB.shape)
    fluid[20:30, 5:9, 1] = 3
    fluid[:, :, 2] = np.nan
    return {
        "images": MATLAB.astype(float),
        "manualLayers1": layers,
        "manualFluid1": fluid,
        "automaticFluidDME": fluid,
    }


def matlab(folder):
    savemat(folder / "v.mat", chiu(), do_compression=True)
    return folder / "v.mat"


def matlab_73(folder):
    with h5py.File(folder / "v.mat", "w", userblock_size=512) as file:
        for name, values in chiu().items():
            file.create_dataset(name, data=values.T, compression="gzip")
    return folder / "v.mat"


def matlab_amd(folder):
    maps = np.arange(3.0) + 10 * np.arange(SHAPE[0])[:, None, None] + np.zeros((1, SHAPE[2], 1))
    savemat(folder / "v.mat", {"images": MATLAB, "layerMaps": maps + 1, "Age": 70})
    return folder / "v.mat"


def matlab_vol(folder, **header):
    scans = {f"B{b}": bscan / np.float32(255) for b, bscan in enumerate(PATTERN)}
    fields = {"Distance": 0.12, "ScaleZ": 0.004, "ScaleX": 0.012, "ScanPosition": "OD  "}
    savemat(folder / "v.mat", scans | fields | {"PatientID": "Zyxwvut"} | header)
    return folder / "v.mat"


def cirrus_cube(folder):
    path = folder / "P1_Macular Cube 512x128_1-2-2020_3-4-5_OS_sn1_cube_raw.img"
    path.write_bytes(PATTERN[:, ::-1, ::-1].tobytes())
    return path


def opt(folder, gray=PATTERN, rows=None, planes=None, **changes):
    """Write a DICOM OPT file.

    `rows` is where each B-scan lies on the fundus image, `planes` its position and direction.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.OphthalmicTomographyImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    data.PatientName, data.PatientID, data.Modality = "Zyxwvut^A", "Zyxwvut", "OPT"
    data.Manufacturer, data.ManufacturerModelName = "Maker", "Model"
    data.NumberOfFrames, data.Rows, data.Columns = gray.shape
    data.BitsAllocated = data.BitsStored = 8 * gray.itemsize
    data.HighBit, data.SamplesPerPixel, data.PixelRepresentation = data.BitsStored - 1, 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.ImageLaterality = "L"
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [SPACING[1], SPACING[2]]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    if rows is None:
        rows = [[500 - 10 * b, 20, 500 - 10 * b, 400] for b in range(len(gray))]
    planes = planes or [([0, 0, -SPACING[0] * b], [1, 0, 0]) for b in range(len(gray))]
    for b, (corner, along_x) in enumerate(planes):
        frame, position, direction, place = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = corner
        direction.ImageOrientationPatient = [*along_x, 0, 1, 0]
        frame.PlanePositionSequence = [position]
        frame.PlaneOrientationSequence = [direction]
        if rows:
            place.ReferenceCoordinates = rows[b]
            frame.OphthalmicFrameLocationSequence = [place]
        data.PerFrameFunctionalGroupsSequence.append(frame)
    data.PixelData = gray.tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(folder / "v.dcm", enforce_file_format=True)
    return folder / "v.dcm"


def at_mm(*places):
    return [([0, 0, place], [1, 0, 0]) for place in places]


# writer: (spacing in mm, eye)
FORMATS = {
    nifti: (SPACING, ""),
    nifti_plain: (SPACING, ""),
    nifti_in_um: (SPACING, ""),
    tiff_stack: (UNKNOWN, ""),
    tiff_lzw_as_rgb: (UNKNOWN, ""),
    tiff_float: (UNKNOWN, ""),
    image_folder: (UNKNOWN, ""),
    bmp_folder: (UNKNOWN, ""),
    metaimage: (SPACING, ""),
    metaimage_packed: (SPACING, ""),
    metaimage_one_file: (SPACING, ""),
    matlab: ((0.123, 0.00387, 0.01133), ""),
    matlab_73: ((0.123, 0.00387, 0.01133), ""),
    matlab_amd: (UNKNOWN, ""),
    matlab_vol: (SPACING, "R"),
    cirrus_cube: ((6 / 5, 2 / 70, 6 / 40), "L"),
    opt: (SPACING, "L"),
}


def describe(path, **facts):
    stem = path / "oct" if path.is_dir() else path.with_name(path.name.removesuffix(".gz"))
    (stem if path.is_dir() else stem.with_suffix("")).with_suffix(".yaml").write_text(
        json.dumps(facts)
    )
