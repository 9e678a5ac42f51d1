"""Calibration of frames: finds dark and flat images, corrects cameras channel by channel, and makes such images."""
