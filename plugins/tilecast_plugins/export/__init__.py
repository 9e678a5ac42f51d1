"""Mosaics and frames as files that other programs open: `tilecast export` (README beside this file).

What is written is one moment of a run (`moment`), cut out and reduced tile by tile (`levels`), under a hidden name
until it is whole (`finishing`); `ome_tiff`, `ome_zarr`, `frames` and `tilecast_plugins.pyme` know the formats.
"""
