"""The daemon that builds the mosaic of a tile scan while the microscope is still scanning.

Where what is: `daemon/README.md`. What cameras and viewers import is another package, `tilecast_protocol`.
"""
