"""Splits the frames of a dual-view camera into two channels."""
