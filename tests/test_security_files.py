"""No file that is read may run code, or bring the content of another file into the results."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from format_writers import PATTERN, matlab_73, nifti, tiff_stack
from made_maps import native_volume
from scipy.io import savemat

from anogan.checkpoint import load_checkpoint, read_notes
from anogan.evidence.score_tables import read_scores
from anogan.maps.file import open_maps
from anogan.model import load_model
from anogan.page.inputs import read_latent
from preprocessing.errors import InputError
from preprocessing.geometry import FIELDS, read_geometry
from preprocessing.layers import read_layers
from preprocessing.patch_file import INDEX_DTYPE, open_patches, read_index
from preprocessing.readers import read_vendor_volume
from preprocessing.volume import companion, read_volume, write_volume

ROOT = Path(__file__).parents[1]
LAYERS = ("ilm", "rpe", "bm", "confidence")


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return open, (str(self.marker), "w")


@pytest.fixture
def trap(tmp_path):
    trap = Trap(tmp_path / "unpickled")
    pickle.loads(pickle.dumps(trap)).close()
    assert trap.marker.exists()  # it does what it is meant to
    trap.marker.unlink()
    yield trap
    assert not trap.marker.exists()


def archive_of_objects(path, trap, names):
    np.savez(path, **{name: np.array([trap], object) for name in names})


def array_of_objects(path, trap, names):
    with path.open("wb") as file:
        np.save(file, np.array([trap], object))


def plain_pickle(path, trap, names):
    path.write_bytes(pickle.dumps({name: trap for name in names}))


def npy_member(path, trap, names):
    """Write an archive whose members are pickles without the header of an array."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", pickle.dumps(trap))


def torch_zip(path, trap, names=()):
    torch.save({"notes": trap}, path)


def torch_legacy(path, trap, names=()):
    torch.save({"notes": trap}, path, _use_new_zipfile_serialization=False)


def pickled_header(path, trap, names=()):
    """Write a safetensors file whose header is a pickle."""
    header = pickle.dumps(trap)
    path.write_bytes(struct.pack("<Q", len(header)) + header)


NPZ = [archive_of_objects, array_of_objects, plain_pickle, npy_member, torch_zip]
WEIGHTS = [torch_zip, torch_legacy, plain_pickle, pickled_header]


@pytest.mark.parametrize("write", NPZ)
@pytest.mark.parametrize(("read", "names"), [(read_layers, LAYERS), (read_geometry, FIELDS)])
def test_archives_of_arrays(tmp_path, trap, write, read, names):
    write(tmp_path / "a.npz", trap, names)
    with pytest.raises(InputError, match=r"a\.npz"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("write", NPZ)
def test_vendor_layers(tmp_path, trap, write):
    path = tmp_path / "volume.nii.gz"
    write_volume(native_volume("v"), path)
    write(companion(path, "vendor"), trap, ("names", "surfaces"))
    with pytest.raises(InputError, match=r"volume\.vendor\.npz"):
        read_volume(path)


@pytest.mark.parametrize("write", WEIGHTS)
def test_weights_and_checkpoints(tmp_path, trap, write):
    write(tmp_path / "weights.safetensors", trap, ())
    description = {"model": "gan", "architecture": {"patch_size": 64}}
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="not a complete model"):
        load_model(tmp_path, torch.device("cpu"))
    for read in (read_notes, lambda path: load_checkpoint(path, {}, {})):
        with pytest.raises(InputError, match=r"weights\.safetensors: damaged"):
            read(tmp_path / "weights.safetensors")


def test_pickles_in_hdf5_stay_bytes(tmp_path, trap):
    path = tmp_path / "p.h5"
    content = pickle.dumps(trap)
    with h5py.File(path, "w") as file:
        kind = h5py.vlen_dtype(np.uint8)
        for name in ("patches", "masks"):
            values = file.create_dataset(name, (1,), kind)
            values[0] = np.frombuffer(content, np.uint8)
            values.attrs["pickle"] = np.void(content)
        file.create_dataset("index", (1,), INDEX_DTYPE).attrs["FIELD_0"] = np.void(content)
        file.attrs["python_pickle"] = np.void(content)
    with open_patches(path) as file:
        assert bytes(file["patches"][0]) == content
        assert bytes(file.attrs["python_pickle"]) == content
        read_index(file)


def test_pickles_in_parquet(tmp_path, trap):
    content = pickle.dumps(trap)
    table = pd.DataFrame({name: [0] for name in ("volume", "bscan", "method", "score")})
    schema = pa.Schema.from_pandas(table)
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": content,
    }
    column = pa.field("score", pa.int64(), metadata=extension)
    schema = schema.set(schema.get_field_index("score"), column)
    described = json.loads(schema.metadata[b"pandas"])
    described["attributes"] = {"pickle": content.decode("latin-1")}
    described["columns"][0]["pandas_type"] = described["columns"][0]["numpy_type"] = "object"
    schema = schema.with_metadata(
        {b"pandas": json.dumps(described).encode(), b"PANDAS_ATTRS": b'{"py/object": "os.system"}'}
    )
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False).cast(schema), tmp_path / "s")
    with pytest.raises(InputError, match="lacks the columns"):
        read_scores([tmp_path / "s"])
    plain_pickle(tmp_path / "s", trap, ())
    with pytest.raises(InputError, match="not a readable score file"):
        read_scores([tmp_path / "s"])


def test_a_pickle_in_a_nifti_header(tmp_path, trap):
    image = nib.Nifti1Image(PATTERN.T, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("pypickle", pickle.dumps(trap)))
    image.to_filename(tmp_path / "v.nii")
    assert (read_vendor_volume(tmp_path / "v.nii").data > 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "device: !!python/object/apply:builtins.open ['{}', w]",
        "device: !!python/object/new:builtins.open ['{}', w]",
        "!!python/object/apply:builtins.open ['{}', w]: R",
        "device: !!python/name:builtins.open",
    ],
)
def test_objects_in_a_sidecar(tmp_path, trap, text):
    (tmp_path / "v.yaml").write_text(text.format(trap.marker))
    with pytest.raises(InputError, match=r"v\.yaml"):
        read_vendor_volume(nifti(tmp_path))


def test_objects_in_the_config(tmp_path, trap):
    config = tmp_path / "config.yaml"
    config.write_text(f"seed: !!python/object/apply:builtins.open ['{trap.marker}', w]\n")
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", str(config)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode
    assert "not valid JSON or YAML" in result.stdout + result.stderr


def test_matlab_objects(tmp_path, trap):
    content = np.frombuffer(pickle.dumps(trap), np.uint8)
    cells = np.empty((2, 2), object)
    cells[:] = [[content, content]] * 2
    for images in (cells, {"py": content}, np.array([(content,)], [("pickle", object)])):
        savemat(tmp_path / "v.mat", {"images": images})
        with pytest.raises(InputError, match=r"v\.mat"):
            read_vendor_volume(tmp_path / "v.mat")
    with h5py.File(tmp_path / "v.mat", "w") as file:
        file["pickle"] = content
        file["images"] = np.array([[file["pickle"].ref]], h5py.ref_dtype)
    with pytest.raises(InputError, match="no array of numbers"):
        read_vendor_volume(tmp_path / "v.mat")


@pytest.mark.parametrize("suffix", [".tif", ".png", ".dcm", ".vol", ".xml", ".mhd", ".img", ".h5"])
def test_a_pickle_under_the_name_of_a_scan(tmp_path, trap, suffix):
    plain_pickle(tmp_path / f"v{suffix}", trap, ("images",))
    with pytest.raises(InputError):
        read_vendor_volume(tmp_path / f"v{suffix}")


def external_link(file, name, secret):
    file[name] = h5py.ExternalLink(secret, "/secret")


def external_storage(file, name, secret):
    shape = (1, 64, 64)
    file.create_dataset(name, shape, np.uint8, external=[(secret, 0, int(np.prod(shape)))])


def virtual_dataset(file, name, secret):
    layout = h5py.VirtualLayout((1, 64, 64), np.uint8)
    layout[:] = h5py.VirtualSource(secret, "secret", (1, 64, 64))
    file.create_virtual_dataset(name, layout)


def chained_links(file, name, secret):
    external_link(file, "elsewhere", secret)
    file[name] = h5py.SoftLink("/elsewhere")


def read_maps_of(path):
    with open_maps(path) as maps:
        return list(maps)


def read_patches(path):
    with open_patches(path) as file:
        return file["patches"][:]


READERS = {
    "patches": read_patches,
    "geometry/v1/ilm": read_patches,
    "v1/score": read_maps_of,
    "walks": read_latent,
    "images": read_vendor_volume,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "borrow", [external_link, external_storage, virtual_dataset, chained_links]
)
def test_hdf5_brings_in_no_other_file(tmp_path, name, borrow):
    secret = str(tmp_path / "secret.h5")
    with h5py.File(secret, "w") as file:
        file["secret"] = np.full((1, 64, 64), 42, np.uint8)
    path = tmp_path / "v.mat"
    with h5py.File(path, "w") as file:
        for own in {"patches", "masks", "index", "tsne"} - {name}:
            file[own] = np.zeros((1, 64, 64), np.uint8)
        borrow(file, name, secret)
    with h5py.File(path) as file:
        assert file[name].shape == (1, 64, 64)  # h5py itself does not mind
    with pytest.raises(InputError, match="takes its values from another file"):
        READERS[name](path)


def test_links_within_a_file_are_its_own(tmp_path):
    path = matlab_73(tmp_path)
    with h5py.File(path, "a") as file:
        file.move("images", "kept")
        file["images"] = h5py.SoftLink("/kept")
    assert read_vendor_volume(path).data.shape == PATTERN.shape


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw", None])
def test_pictures_that_unpack_to_more_than_memory_holds(tmp_path, monkeypatch, compression):
    monkeypatch.setattr("preprocessing.untrusted.MAX_VOXELS", 10**6)
    pages = np.zeros((3, 600, 600), np.uint8)
    if compression:
        path = tiff_stack(tmp_path, pages, compression=compression)
    else:
        path = tmp_path / "scans"
        path.mkdir()
        for page in range(3):
            tiff_stack(path, pages[:1], f"{page}.png")
    with pytest.raises(InputError, match="more than can be read"):
        read_vendor_volume(path)
