"""Every layout as its own tools read it, and every round trip."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from zoomfeat.bags import Bag, convert, validate
from zoomfeat.errors import BagInvalidError, ConfigurationError, MagnificationError

SLIDE = "TCGA-A2-A0CM-01Z-00-DX1"


@pytest.fixture
def two_slides(saved, make_bag) -> tuple[Path, dict[str, Bag]]:
    """A folder with two bags, and the bags."""
    bags = {name: make_bag(slide_id=name, seed=seed) for seed, name in enumerate((SLIDE, "slide.two"))}
    paths = [saved(bag) for bag in bags.values()]
    return paths[0].parent, bags


def _back(source: Path, out: Path, **options: object) -> dict[str, Bag]:
    rows = convert(source, out, **options)
    assert [row.error for row in rows] == [None] * len(rows)
    for row in rows:
        validate(row.written[0])
    return {row.slide: Bag.open(row.written[0]) for row in rows}


# What each tool finds, read the way the tool reads it.


def test_fused_adds_one_data_set(saved, make_bag, tmp_path):
    bag = make_bag()
    (row,) = convert(saved(bag), tmp_path / "out", to="fused")
    with h5py.File(row.written[0]) as file:
        np.testing.assert_array_equal(file["features_fused"][:], bag.fused())
    validate(row.written[0])


def test_a_bag_reads_as_trident_reads_it(saved, make_bag):
    bag = make_bag()
    with h5py.File(saved(bag)) as file:
        attributes = dict(file["coords"].attrs)
        features, coords = file["features"][:], file["coords"][:]
    # Patch and slide encoders of TRIDENT scale coordinates and heatmaps by these.
    assert len(features) == len(coords)
    downsample = attributes["level0_magnification"] / attributes["target_magnification"]
    assert attributes["patch_size_level0"] == pytest.approx(attributes["patch_size"] * downsample, rel=0.02)
    last = coords.max(axis=0) + attributes["patch_size_level0"]
    assert (last - 506 <= (attributes["level0_width"], attributes["level0_height"])).all()


def test_a_bag_folder_reads_with_torchmil(two_slides, tmp_path):
    from torchmil.datasets import ProcessedMILDataset

    folder, bags = two_slides
    data = ProcessedMILDataset(
        features_path=str(folder), coords_path=str(folder), bag_keys=["X", "coords"], file_ext=".h5"
    )
    assert data.get_bag_names() == sorted(bags)
    for name, item in zip(data.get_bag_names(), data, strict=True):
        np.testing.assert_array_equal(item["X"], bags[name].features)


def test_trident_tree(two_slides, tmp_path):
    from torchmil.datasets import TridentWSIDataset

    folder, bags = two_slides
    out = tmp_path / "out"
    convert(folder, out, to="trident")
    assert sorted(path.name for path in out.iterdir()) == ["20x_256px_0px_overlap", "5x_256px_0px_overlap"]
    labels = tmp_path / "labels.csv"
    labels.write_text(f"slide,label\n{SLIDE}.svs,1\nslide.two.svs,0\n")
    for name, size in (("20x", 506), ("5x", 2024)):
        data = TridentWSIDataset(
            base_path=f"{out}/{name}_256px_0px_overlap/",
            labels_path=str(labels),
            feature_extractor="zoomldm",
            patch_size=size,
            bag_keys=["X", "Y", "adj", "coords"],
            wsi_name_col="slide",
            wsi_label_col="label",
        )
        item = data[data.get_bag_names().index(SLIDE)]
        scale = bags[SLIDE].scale(name)
        np.testing.assert_array_equal(item["X"], scale.features)
        np.testing.assert_array_equal(item["coords"], scale.coords // size)
        assert item["adj"].shape == (len(scale), len(scale))
    with h5py.File(out / f"20x_256px_0px_overlap/patches/{SLIDE}_patches.h5") as file:
        assert file["coords"].attrs["patch_size_level0"] == 506
        assert file["coords"].attrs["savetodir"] == "."


def test_trident_fused_is_an_encoder_of_its_own(saved, make_bag, tmp_path):
    bag = make_bag(encoder="hf-hub:MahmoodLab/UNI")
    path = saved(bag)
    convert(path, tmp_path / "out", to="trident")
    convert(path, tmp_path / "out", to="trident", features="fused")
    folder = tmp_path / "out" / "20x_256px_0px_overlap"
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "features_hf-hub-MahmoodLab-UNI",
        "features_hf-hub-MahmoodLab-UNI-20x+5x",
        "patches",
    ]
    with h5py.File(folder / f"features_hf-hub-MahmoodLab-UNI-20x+5x/{SLIDE}.h5") as file:
        np.testing.assert_array_equal(file["features"][:], bag.fused())


def test_clam_tree(saved, make_bag, tmp_path):
    bag = make_bag()
    convert(saved(bag), tmp_path / "out", to="clam")
    root = tmp_path / "out" / "5x"
    tensor = torch.load(root / "pt_files" / f"{SLIDE}.pt", weights_only=True)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor, bag.scale("5x").features)
    with h5py.File(root / "h5_files" / f"{SLIDE}.h5") as file:
        attributes = dict(file["coords"].attrs)
        np.testing.assert_array_equal(file["features"][:], bag.scale("5x").features)
    # CLAM reads patch_size px at patch_level from each coordinate.
    assert (attributes["patch_size"], attributes["patch_level"]) == (2024, 0)
    assert attributes["downsample"].tolist() == [1, 1]
    size = list(bag.metadata.level0_size)
    assert attributes["level_dim"].tolist() == attributes["downsampled_level_dim"].tolist() == size
    assert (attributes["name"], attributes["save_path"]) == (SLIDE, ".")


def test_stamp_tree(saved, make_bag, tmp_path):
    bag = make_bag(mpp_level0=(0.25, 0.25))
    convert(saved(bag), tmp_path / "out", to="stamp")
    with h5py.File(tmp_path / "out" / "20x" / f"{SLIDE}.h5") as file:
        assert (file["feats"].dtype, file["coords"].dtype) == (np.float16, np.float32)
        np.testing.assert_allclose(file["coords"][:], bag.coords * 0.25)
        attributes = dict(file.attrs)
        # STAMP places tiles on its heatmap by this quotient.
        cells = np.round(file["coords"][:] / attributes["tile_size_um"])
    np.testing.assert_array_equal(cells, bag.coords // 512)
    assert attributes.pop("patch_size_level0_xy").tolist() == [512, 512]
    assert attributes == {
        "extractor": "zoomldm",
        "unit": "um",
        "tile_size_um": 128.0,
        "tile_size_px": 256,
        "feat_type": "tile",
        "stamp_version": "2.1.0",
        "code_hash": "beef",
    }


def test_stamp_heatmaps_do_not_drift_over_a_wide_slide(saved, make_bag, tmp_path):
    bag = make_bag(("20x",), tiles=(1200, 1), dim=1)
    convert(saved(bag), tmp_path / "out", to="stamp")
    with h5py.File(tmp_path / "out" / "20x" / f"{SLIDE}.h5") as file:
        cells = np.round(file["coords"][:] / file.attrs["tile_size_um"])
    np.testing.assert_array_equal(cells, bag.coords // 506)


def test_torchmil_tree(two_slides, tmp_path):
    from torchmil.datasets import ProcessedMILDataset

    folder, bags = two_slides
    convert(folder, tmp_path / "out", to="torchmil")
    data = ProcessedMILDataset(
        features_path=str(tmp_path / "out/20x/features"),
        coords_path=str(tmp_path / "out/20x/coords"),
        bag_keys=["X", "adj", "coords"],
    )
    item = data[data.get_bag_names().index(SLIDE)]
    bag = bags[SLIDE]
    np.testing.assert_array_equal(item["X"], bag.features)
    np.testing.assert_array_equal(item["coords"], bag.coords // 506)
    neighbours = item["adj"].to_dense()[0].nonzero().flatten().numpy()
    steps = np.abs(bag.coords - bag.coords[0]).max(axis=1)
    np.testing.assert_array_equal(neighbours, np.flatnonzero(steps == 506))


@pytest.mark.parametrize(("features", "label", "dim"), [("all", "20x", 32), ("fused", "20x+5x", 64)])
def test_anndata(saved, make_bag, tmp_path, features, label, dim):
    anndata = pytest.importorskip("anndata")
    bag = make_bag()
    convert(saved(bag), tmp_path / "out", to="anndata", features=features)
    table = anndata.read_h5ad(tmp_path / "out" / label / f"{SLIDE}.h5ad")
    assert table.shape == (len(bag), dim)
    np.testing.assert_array_equal(table.X[:, :32], bag.features)
    np.testing.assert_array_equal(table.obsm["spatial"], bag.coords)
    np.testing.assert_array_equal(table.obs["parent_5x"], bag.parent("5x"))
    assert table.uns["zoomfeat"]["encoder"] == "zoomldm"
    assert table.uns["coords"]["patch_size_level0"] == 506


def test_anndata_is_an_extra(saved, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_anndata(name, *args):
        if name == "anndata":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_anndata)
    with pytest.raises(ConfigurationError, match=r"needs the anndata package\. pip install 'zoomfeat\[anndata\]'"):
        convert(saved(), tmp_path / "out", to="anndata")


# Round trips.


@pytest.mark.parametrize("layout", ["zoomfeat", "fused", "trident", "clam", "stamp", "torchmil"])
@pytest.mark.parametrize("magnifications", [("20x",), ("20x", "5x"), ("20x", "2.5x", "0.3125x")])
@pytest.mark.parametrize("mpp", [(0.2528, 0.2528), (0.25, 0.27)])
def test_round_trip(saved, make_bag, assert_same_scales, tmp_path, layout, magnifications, mpp):
    bag = make_bag(magnifications, mpp_level0=mpp, tiles=(2, 1), dim=4)
    path = saved(bag)
    convert(path, tmp_path / "there", to=layout)
    back = _back(tmp_path / "there", tmp_path / "back", to="zoomfeat", mpp=mpp)
    assert_same_scales(back[SLIDE], bag, exact=layout != "stamp")
    assert back[SLIDE].metadata.mpp_level0 == mpp
    if layout not in ("zoomfeat", "fused"):
        assert back[SLIDE].metadata.weights_hash == back[SLIDE].metadata.reader == "unknown"


@pytest.mark.parametrize("layout", ["trident", "clam", "torchmil"])
def test_round_trip_without_um_per_px(saved, make_bag, assert_same_scales, tmp_path, layout):
    bag = make_bag(mpp_level0=None, level0_width=None, level0_height=None)
    convert(saved(bag), tmp_path / "there", to=layout)
    back = _back(tmp_path / "there", tmp_path / "back")[SLIDE]
    assert_same_scales(back, bag)
    assert back.metadata.mpp_level0 is None
    assert (back.metadata.mpp_source, back.metadata.level0_size) == ("unknown", None)


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp", "torchmil"])
def test_a_folder_of_slides_and_one_magnification_of_it(two_slides, assert_same_scales, tmp_path, layout):
    folder, bags = two_slides
    convert(folder, tmp_path / "there", to=layout)
    convert(folder, tmp_path / "there", to=layout, features="fused")
    back = _back(tmp_path / "there", tmp_path / "back", mpp=0.2528)
    assert back.keys() == bags.keys()
    for name, bag in bags.items():
        assert_same_scales(back[name], bag, exact=layout != "stamp")
    single = next(path for path in (tmp_path / "there").iterdir() if path.name.startswith("5x"))
    coarse = _back(single, tmp_path / "coarse", mpp=0.2528)
    assert coarse[SLIDE].magnifications == ("5x",)


def test_between_foreign_layouts(saved, make_bag, tmp_path):
    bag = make_bag()
    convert(saved(bag), tmp_path / "trident", to="trident")
    convert(tmp_path / "trident", tmp_path / "clam", to="clam")
    tensor = torch.load(tmp_path / "clam" / "20x" / "pt_files" / f"{SLIDE}.pt", weights_only=True)
    np.testing.assert_array_equal(tensor, bag.features)


@pytest.mark.parametrize("features", ["finest", "5x", "fused"])
def test_one_matrix_is_chosen(saved, make_bag, tmp_path, features):
    bag = make_bag()
    (row,) = convert(saved(bag), tmp_path, to="torchmil", features=features)
    folder, expected = {
        "finest": ("20x", bag.features),
        "5x": ("5x", bag.scale("5x").features),
        "fused": ("20x+5x", bag.fused()),
    }[features]
    assert {path.parents[1].name for path in row.written} == {folder}
    np.testing.assert_array_equal(np.load(row.written[0]), expected)


# Trees as other tools write them: without what zoomfeat adds.


def _grid(count: int, size: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2) * size


def test_trident_as_trident_writes_it(tmp_path):
    folder = tmp_path / "20x_512px_0px_overlap" / "features_uni_v1"
    folder.mkdir(parents=True)
    with h5py.File(folder / "a.b.h5", "w") as file:
        file["features"] = np.ones((9, 8), np.float32)
        file["coords"] = _grid(3, 1024)
        file["coords"].attrs.update(
            patch_size=512,
            patch_size_level0=1024,
            level0_magnification=40,
            target_magnification=20,
            overlap=0,
            name="a.b",
            savetodir="/somewhere",
            level0_width=4000,
            level0_height=3500,
        )
    bag = _back(tmp_path, tmp_path / "out")["a.b"]
    scale = bag.scale("20x")
    assert (scale.patch_size, scale.patch_size_level0, scale.mpp) == (512, (1024, 1024), 0.5)
    assert bag.metadata.encoder == "uni_v1"
    assert bag.metadata.mpp_level0 is None
    assert bag.metadata.level0_size == (4000, 3500)
    assert _back(tmp_path, tmp_path / "out", mpp=0.25)["a.b"].metadata.mpp_source == "user"


def test_trident_with_several_encoders_asks_which(tmp_path, saved, make_bag):
    for encoder in ("uni", "phikon"):
        convert(saved(make_bag(encoder=encoder)), tmp_path / "there", to="trident")
    with pytest.raises(ConfigurationError, match=r"several encoders: phikon, uni\. Choose one with encoder_name="):
        convert(tmp_path / "there", tmp_path / "out")
    assert _back(tmp_path / "there", tmp_path / "out", encoder_name="uni")[SLIDE].metadata.encoder == "uni"
    alone = tmp_path / "there" / "5x_256px_0px_overlap" / "features_phikon"
    assert _back(alone, tmp_path / "out")[SLIDE].magnifications == ("5x",)
    assert _back(alone / f"{SLIDE}.h5", tmp_path / "out")[SLIDE].metadata.encoder == "phikon"


def test_overlap_is_refused(tmp_path, saved, make_bag):
    (row,) = convert(saved(make_bag()), tmp_path / "there", to="trident", features="finest")
    with h5py.File(row.written[0], "r+") as file:
        file["coords"].attrs["overlap"] = 64
    with pytest.raises(BagInvalidError, match="patches overlap by 64 px"):
        convert(row.written[0], tmp_path / "out")


@pytest.fixture
def clam_root(tmp_path) -> Path:
    """CLAM's folder of 256 px patches cut from level 1 of a slide, 4 times coarser than level 0."""
    root = tmp_path / "features"
    for folder in ("h5_files", "pt_files"):
        (root / folder).mkdir(parents=True)
    with h5py.File(root / "h5_files" / "a.h5", "w") as file:
        file["features"] = np.full((9, 8), 2, np.float32)
        file["coords"] = _grid(3, 1024).astype(np.int32)
        file["coords"].attrs.update(
            patch_size=256,
            patch_level=1,
            downsample=(4.0, 4.0),
            level_dim=(1000, 1000),
            downsampled_level_dim=(1000, 1000),
            name="a",
            save_path="/somewhere",
        )
    torch.save(torch.full((9, 8), 2.0), root / "pt_files" / "a.pt")
    return root


@pytest.mark.parametrize("source", [".", "h5_files/a.h5", "pt_files/a.pt"])
def test_clam_as_clam_writes_it(clam_root, tmp_path, source):
    bag = _back(clam_root / source, tmp_path / "out", magnification="10x", encoder_name="resnet50")["a"]
    assert bag.scale("10x").patch_size_level0 == (1024, 1024)
    assert bag.scale("10x").patch_size == 256
    assert (bag.features == 2).all()
    assert bag.metadata.encoder == "resnet50"
    assert bag.metadata.level0_size is None


def test_clam_without_magnification_asks_for_it(clam_root, tmp_path):
    (row,) = convert(clam_root, tmp_path / "out")
    assert "say the magnification. Give it with magnification=" in str(row.error)


def test_clam_tensors_alone_have_no_coordinates(clam_root, tmp_path):
    (clam_root / "h5_files" / "a.h5").unlink()
    with pytest.raises(BagInvalidError, match="holds no coordinates"):
        convert(clam_root / "pt_files" / "a.pt", tmp_path / "out", magnification="10x")
    (row,) = convert(clam_root, tmp_path / "out", magnification="10x")
    assert isinstance(row.error, BagInvalidError)


def test_clam_tensors_that_run_code_or_do_not_fit_are_refused(clam_root, tmp_path):
    path = clam_root / "pt_files" / "a.pt"
    for content, message in (
        (Path("x"), "not a tensor that loads safely"),
        (torch.zeros(3, 8), r"holds \(3, 8\), expected a tensor \(9, 8\)"),
        ({"features": 1}, "holds dict"),
    ):
        torch.save(content, path)
        with pytest.raises(BagInvalidError, match=message):
            convert(path, tmp_path / "out", magnification="10x")


def test_stamp_as_stamp_writes_it(tmp_path):
    path = tmp_path / "virchow" / "a.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["feats"] = np.ones((9, 8), np.float16)
        file["coords"] = (_grid(3, 1) * 256.0).astype(np.float32)
        file.attrs.update(extractor="virchow", unit="um", tile_size_um=256.0, tile_size_px=224, feat_type="tile")
    with pytest.raises(ConfigurationError, match=r"does not state the slide's um/px\. Give .* mpp="):
        convert(path, tmp_path / "out")
    bag = _back(path, tmp_path / "out", mpp=0.25)["a"]
    assert bag.magnifications == ("8.75x",)
    assert bag.scales[0].patch_size == 224
    np.testing.assert_array_equal(bag.coords, _grid(3, 1024))
    with h5py.File(path, "r+") as file:
        file.attrs["unit"] = "px"
    with pytest.raises(BagInvalidError, match="coordinates in 'px', expected 'um'"):
        convert(path, tmp_path / "out", mpp=0.25)


def test_torchmil_as_others_write_it(tmp_path):
    root = tmp_path / "10x"
    for folder, array in (("features", np.ones((9, 8))), ("coords", _grid(3, 1))):
        (root / folder).mkdir(parents=True)
        np.save(root / folder / "a.npy", array)
    with pytest.raises(ConfigurationError, match="um/px is not stated"):
        convert(root / "features" / "a.npy", tmp_path / "out")
    bag = _back(root, tmp_path / "out", mpp=0.25)["a"]
    np.testing.assert_array_equal(bag.coords, _grid(3, 1024))
    (root / "coords" / "a.npy").unlink()
    (row,) = convert(root, tmp_path / "out", mpp=0.25)
    assert "missing or not a NumPy array" in str(row.error)


def test_grids_that_do_not_nest_are_refused(saved, make_bag, tmp_path):
    convert(saved(make_bag()), tmp_path / "there", to="clam")
    with h5py.File(tmp_path / "there" / "20x" / "h5_files" / f"{SLIDE}.h5", "r+") as file:
        file["coords"][...] = file["coords"][:] // 2
        file["coords"][0] = 1900
    (row,) = convert(tmp_path / "there", tmp_path / "out")
    assert "20x patches lie in no 5x patch" in str(row.error)


# One bad slide, wrong options.


def test_one_bad_slide_does_not_end_the_others(two_slides, tmp_path):
    folder, _ = two_slides
    (folder / "broken.h5").write_bytes(b"no bag")
    rows = {row.slide: row for row in convert(folder, tmp_path / "out", to="stamp")}
    assert isinstance(rows["broken"].error, BagInvalidError)
    assert rows["broken"].written == ()
    assert len(rows[SLIDE].written) == len(rows["slide.two"].written) == 2


def test_a_bad_first_slide_does_not_hide_the_layout(two_slides, tmp_path):
    folder, _ = two_slides
    convert(folder, tmp_path / "there", to="stamp", features="finest")
    (tmp_path / "there" / "20x" / "A.h5").write_bytes(b"no bag")
    rows = convert(tmp_path / "there", tmp_path / "back", mpp=0.2528)
    assert [row.slide for row in rows if row.error] == ["A"]
    assert len(rows) == 3


def test_a_single_bad_file_raises(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no bag")
    with pytest.raises(BagInvalidError, match="not an HDF5 file"):
        convert(tmp_path / "a.h5", tmp_path / "out", to="clam")


def test_um_per_px_fills_a_gap_and_never_contradicts(saved, make_bag, tmp_path):
    unknown = make_bag(mpp_level0=None)
    with pytest.raises(ConfigurationError, match=r"needs it\. Give it with mpp="):
        convert(saved(unknown), tmp_path / "out", to="stamp")
    convert(saved(unknown), tmp_path / "out", to="stamp", mpp=0.25)
    known = make_bag()
    with pytest.raises(ConfigurationError, match="contradicts"):
        convert(saved(known), tmp_path / "out", to="stamp", mpp=0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "slideflow"}, ConfigurationError, "no layout 'slideflow'. Use one of trident, clam"),
        ({"to": "clam", "layout": "anndata"}, ConfigurationError, "no layout 'anndata'. Use one of trident"),
        ({"to": "clam", "layout": "torchmil"}, ConfigurationError, "no bag of the torchmil layout"),
        ({"to": "clam", "features": "10x"}, MagnificationError, "no magnification '10x'"),
    ],
)
def test_wrong_options_are_named(saved, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        convert(saved(), tmp_path / "out", **options)


def test_empty_and_missing_sources_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="no bag of the layouts trident, clam, torchmil, stamp, zoomfeat"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="no such file or folder"):
        convert(tmp_path / "missing", tmp_path / "out")


def test_renamed_files_keep_their_slide(saved, make_bag, tmp_path):
    path = saved(replace(make_bag(), metadata=replace(make_bag().metadata, slide_id="inner")))
    (row,) = convert(path, tmp_path / "out", to="torchmil", features="finest")
    assert row.written[0].name == "inner.npy"
