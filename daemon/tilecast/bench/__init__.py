"""Measuring whether a machine keeps up with a camera (`tilecast bench`): the scan, the machine's limits, the figures.

`scan` makes frames and places; `limits` measures what the machine could do at best; `measure` drives a daemon and
gathers what happened; `figures` turns that into numbers and a verdict, without looking at anything; `plot` draws it.
"""
