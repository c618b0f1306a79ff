"""The layouts that bags are converted to and from: one module each, one registry."""

from zoomfeat.bags.layouts import anndata, clam, stamp, torchmil, trident, zoomfeat
from zoomfeat.bags.layouts.base import Foreign, Hints, Layout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        trident.LAYOUT,
        clam.LAYOUT,
        torchmil.LAYOUT,
        stamp.LAYOUT,
        zoomfeat.BAG,
        zoomfeat.FUSED,
        anndata.LAYOUT,
    )
}
"""Layout by name. The first whose files a source holds is taken where the user names none."""

__all__ = ["LAYOUTS", "Foreign", "Hints", "Layout"]
