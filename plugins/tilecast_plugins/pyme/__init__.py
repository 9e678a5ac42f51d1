"""PYME (python-microscopy): mosaics as folders that its ImagePyramid opens.

The way back, a series or a pyramid of PYME into a daemon, is `tilecast send`.
"""
