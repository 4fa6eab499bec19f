"""Damaged and hostile files end in one InputError, quickly and in little memory."""

import gzip
import os
import struct
import zlib

import h5py
import numpy as np
import pytest
from format_writers import (
    FORMATS,
    PATTERN,
    SHAPE,
    matlab,
    matlab_73,
    matlab_amd,
    metaimage,
    nifti,
    nifti_plain,
    opt,
    tiff_stack,
)
from fuzzing import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from preprocessing.errors import InputError
from preprocessing.readers import cirrus, read_vendor_volume
from preprocessing.untrusted import parsing


def file_of(path):
    """The file to damage: `path`, or one image in the middle of a folder."""
    return path if path.is_file() else sorted(path.glob("*scan*"))[2]


@pytest.fixture(params=FORMATS, ids=lambda writer: writer.__name__)
def written(request, tmp_path, monkeypatch):
    monkeypatch.setitem(cirrus.CUBES, "512x128", SHAPE)
    return request.param(tmp_path)


def test_cut_off_at_every_kilobyte(written):
    file = file_of(written)
    content = file.read_bytes()
    for length in range(0, len(content), 1024):
        file.write_bytes(content[:length])
        with pytest.raises(InputError, match=file.name.split("_")[0]):
            read_vendor_volume(written)


def test_another_format_under_its_name(written):
    file = file_of(written)
    for content in (b"", b"hello" * 3000, b"\0" * 3000, b"\xff" * 3000):
        file.write_bytes(content)
        refused(written)


# HDF5 is left out: its own library has to stand the bytes, no reader of ours
MUTABLE = [writer for writer in FORMATS if writer is not matlab_73]


@pytest.fixture(scope="module", params=MUTABLE, ids=lambda writer: writer.__name__)
def intact(request, tmp_path_factory):
    path = request.param(tmp_path_factory.mktemp("intact"))
    return path, file_of(path).read_bytes()


@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_bytes_give_a_volume_or_one_error(intact, data):
    path, content = intact
    damaged = bytearray(content)
    places = st.integers(0, min(len(damaged), 1000) - 1) | st.integers(0, len(damaged) - 1)
    values = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
    for place, value in data.draw(st.lists(st.tuples(places, values), min_size=1, max_size=6)):
        damaged[place] = value
    file_of(path).write_bytes(damaged)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(cirrus.CUBES, "512x128", SHAPE)
            volume = read_vendor_volume(path)
    except InputError:
        return
    assert volume.data.shape == volume.valid.shape
    assert volume.data.dtype == np.float32
    assert np.isfinite(volume.data).all()


def patched(content, place, fmt, *values):
    content = bytearray(content)
    struct.pack_into(fmt, content, place, *values)
    return bytes(content)


DIM, DATATYPE, BITPIX, VOX_OFFSET = 40, 70, 72, 108  # places in a NIfTI-1 header


@pytest.mark.parametrize(
    ("place", "fmt", "values"),
    [
        (DIM, "<4h", (3, 30000, 30000, 30000)),
        (DIM, "<4h", (3, 0, 70, 5)),
        (DIM, "<4h", (3, -1, 70, 5)),
        (DIM, "<4h", (3, 41, 70, 5)),
        (DIM, "<h", (0,)),
        (DIM, "<h", (32767,)),
        (DIM, "<5h", (4, 40, 70, 5, 2)),
        (DATATYPE, "<2h", (9999, 8)),
        (DATATYPE, "<2h", (32, 64)),
        (DATATYPE, "<2h", (128, 24)),
        (VOX_OFFSET, "<f", (0,)),
        (VOX_OFFSET, "<f", (-1,)),
        (VOX_OFFSET, "<f", (1e9,)),
        (VOX_OFFSET, "<f", (np.inf,)),
        (VOX_OFFSET, "<f", (np.nan,)),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_headers_at_their_extremes(tmp_path, place, fmt, values, suffix):
    content = patched(nifti_plain(tmp_path).read_bytes(), place, fmt, *values)
    path = tmp_path / f"w{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    refused(path)


@pytest.mark.parametrize(
    ("place", "fmt", "values"),
    [
        (DIM, "<4h", (3, 3000, 3000, 3000)),
        (VOX_OFFSET, "<f", (2e8,)),
    ],
)
def test_a_gzip_bomb_is_not_inflated(tmp_path, place, fmt, values):
    header = patched(nifti_plain(tmp_path).read_bytes()[:352], place, fmt, *values)
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(200):
            file.write(bytes(10**6))
    refused(path)


def test_a_wrong_checksum_is_noticed(tmp_path):
    variable = matlab(tmp_path).read_bytes()  # its first is the scan, compressed
    end_of_scan = 128 + 8 + struct.unpack_from("<I", variable, 128 + 4)[0]
    for path, file, place in (
        (tmp_path / "v.mat", tmp_path / "v.mat", end_of_scan - 1),
        (nifti(tmp_path), tmp_path / "v.nii.gz", -8),
        (metaimage(tmp_path, packed=True), tmp_path / "v.zraw", -1),
    ):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        refused(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DimSize = 40 70 5", "DimSize = 40000 70000 50000"),
        ("DimSize = 40 70 5", "DimSize = 0 70 5"),
        ("DimSize = 40 70 5", "DimSize = -1 70 5"),
        ("DimSize = 40 70 5", "DimSize = 40 70"),
        ("DimSize = 40 70 5", "DimSize = many"),
        ("DimSize = 40 70 5\n", ""),
        ("NDims = 3", "NDims = 4"),
        ("NDims = 3\n", ""),
        ("DimSize = 40 70 5", "DimSize = 40 70 5 1"),
        ("DimSize = 40 70 5", "DimSize = 40 35 5 2\nNDims = 4"),
        ("DimSize = 40 70 5", "DimSize = " + "9" * 5000 + " 1 1"),
        ("DimSize = 40 70 5", "DimSize = " + "9" * 4000 + " 1 1"),
        ("ElementDataFile = v.raw", "ElementDataFile ="),
        ("ElementDataFile = v.raw", "ElementDataFile = v.mhd"),
        ("ElementDataFile = v.raw", "ElementDataFile = \33[31m" + "y" * 1000),
        ("MET_UCHAR", "MET_FLOAT"),
        ("MET_UCHAR", "MET_STRING"),
        ("CompressedData = False", "CompressedData = True"),
        ("BinaryData = True", "BinaryData = False"),
        ("v.raw", "../v.raw"),
        ("v.raw", "/etc/hostname"),
        ("v.raw", "absent.raw"),
        ("v.raw", "LOCAL"),
        ("ElementSpacing = 0.012", "ElementSpacing = wide"),
        ("ElementDataFile = v.raw", "HeaderSize = -2\nElementDataFile = v.raw"),
        ("ElementDataFile = v.raw", "x"),
    ],
)
def test_metaimage_headers_at_their_extremes(tmp_path, old, new):
    path = metaimage(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    message = refused(path)
    assert len(message) < len(str(tmp_path)) + 250
    assert message.isprintable()


def png(width, height):
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 1), (0, 5), (20000, 9000)])
def test_images_that_declare_too_much(tmp_path, size):
    (tmp_path / "v.png").write_bytes(png(*size))
    refused(tmp_path / "v.png")
    tiff = tiff_stack(tmp_path, PATTERN[:1])
    content = tiff.read_bytes()
    for tag, value in zip((256, 257), size, strict=True):
        place = content.index(struct.pack("<HHI", tag, 4, 1))
        content = patched(content, place, "<HHII", tag, 4, 1, value)
    tiff.write_bytes(content)
    refused(tiff)


def test_matlab_arrays_that_declare_too_much(tmp_path):
    path = matlab_amd(tmp_path)
    content = path.read_bytes()
    place = content.index(struct.pack("<3i", 70, 40, 5))
    for shape in ((30000, 30000, 30000), (0, 70, 5), (-1, 40, 5), (2**31 - 1,) * 3):
        path.write_bytes(patched(content, place, "<3i", *shape))
        refused(path)


def test_a_sparse_hdf5_array_that_declares_too_much(tmp_path):
    path = matlab_73(tmp_path)
    with h5py.File(path, "a") as file:
        del file["images"]
        file.create_dataset("images", (3000, 30000, 30000), "f8", chunks=(1, 64, 64))
    refused(path, "more than can be read")


def sparse(path, start=b"", size=20 * 2**30):
    """Write a file that claims `size` bytes and takes next to none."""
    path.write_bytes(start)
    os.truncate(path, size)
    return path


def test_enormous_files_are_not_read(tmp_path):
    header = metaimage(tmp_path, packed=True).with_name("v.zraw").read_bytes()
    sparse(tmp_path / "v.zraw", header)
    refused(tmp_path / "v.mhd", "v.zraw: .* bytes")
    for path in (matlab(tmp_path), opt(tmp_path)):
        refused(sparse(path, path.read_bytes()), "bytes, more than")


def test_matlab_files_of_too_many_values(tmp_path, monkeypatch):
    path = tmp_path / "v.mat"
    scan = np.zeros((70, 40))
    scans = {f"B{b}": scan for b in range(5)}
    monkeypatch.setattr("preprocessing.untrusted.MAX_VOXELS", 4 * scan.size)
    savemat(path, scans, do_compression=True)
    refused(path, "more than can be read")
    with h5py.File(path, "w") as file:
        for name in scans:
            file[name] = scan
    refused(path, "more than can be read")


def test_matlab_texts_and_names_that_are_too_long(tmp_path):
    path = tmp_path / "v.mat"
    savemat(path, {"B0": np.zeros((70, 40)), "ScanPosition": "OD" * 50})
    refused(path, "a text of 100 characters")
    name = "B" + "1" * 20
    savemat(path, {"images": np.zeros((70, 40)), name: np.zeros(3)})
    assert read_vendor_volume(path).data.shape == (1, 70, 40)
    with h5py.File(path, "w") as file:
        file["B0"] = np.zeros((40, 70))
        file["ScanPosition"] = np.full((100, 1), 65, np.uint16)
        file["ScanPosition"].attrs["MATLAB_class"] = np.bytes_("char")
    refused(path, "a text of 100 characters")
    with h5py.File(path, "w") as file:
        file["images"] = ["a" * 100] * 100
    refused(path, "no array of numbers")


def test_memory_that_runs_out_is_no_damage(tmp_path):
    with pytest.raises(MemoryError), parsing(tmp_path, "file"):
        raise MemoryError


def test_a_quoted_message_is_short_and_printable(tmp_path):
    with pytest.raises(InputError) as error, parsing(tmp_path / "f", "file"):
        raise ValueError("\x1b[31m\u202e" + "y" * 500)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(tmp_path)) + 160
