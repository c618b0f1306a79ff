"""AnnData: ``{slide}.h5ad`` a magnification, for the tools of the single-cell world. Written only.

``X`` holds the features, ``obsm["spatial"]`` the level-0 corners, ``obs`` the rows of the parents,
``uns`` the provenance.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pandas as pd

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.hdf5 import coords_attributes
from zoomfeat.bags.layouts.base import Layout, select
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import make_folder, replacing


def _write(bag: Bag, root: Path, features: str) -> list[Path]:
    anndata = _import()
    finest = bag.magnifications[0]
    written = []
    for matrix in select(bag, features):
        scale = matrix.scale
        rows = pd.DataFrame(index=pd.RangeIndex(len(scale)).astype(str))
        if scale.magnification == finest:
            for name, parent in bag.parents.items():
                rows[f"parent_{name}"] = parent
        table = anndata.AnnData(
            X=scale.features,
            obs=rows,
            obsm={"spatial": scale.coords},
            uns={
                "zoomfeat": {**bag.metadata.to_attributes(), "features": matrix.label},
                "coords": coords_attributes(scale, bag.metadata),
            },
        )
        path = make_folder(root / matrix.label) / f"{bag.metadata.slide_id}.h5ad"
        with replacing(path) as temporary:
            table.write_h5ad(temporary)
        written.append(path)
    return written


def _import() -> ModuleType:
    try:
        import anndata
    except ImportError as error:
        raise ConfigurationError(
            "the AnnData layout needs the anndata package", cure="pip install 'zoomfeat[anndata]'"
        ) from error
    return anndata


LAYOUT = Layout("anndata", _write)
