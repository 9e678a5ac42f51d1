"""An example of a plugin for tilecast, with everything that a plugin can have."""
